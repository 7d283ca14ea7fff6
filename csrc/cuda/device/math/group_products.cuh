// 64 rows x 64 k of weights, 16 rows in the registers of each warp of a warp group, times slots in
// shared memory (expert_gemm_params.h says how they lie). Two ways with the same order of k; sums
// and weights are fragments of mma.m16n8k16 in both.
#pragma once

#include "cuda/device/math/fragments.cuh"
#include "cuda/expert_gemm_params.h"

namespace mimo_rt::cuda {

/// wgmma: the products of one tile go on while the next one is unpacked. sm_90a.
struct GroupProducts {
  static constexpr bool kIsAsync = true;
  static constexpr uint32_t kSlotGroups = 16;  ///< of a unit, at most
  /// Begins sums += weights * tile. Neither may be touched until waited for.
  template <uint32_t kGroups>
  __device__ static void multiply(float (&sums)[kGroups][4], const WeightFragments& weights,
                                  const uint8_t* tile) {
    ptx::wgmma_pin(sums);
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t f = 0; f < 4; ++f)
      ptx::wgmma_m64k16(sums, weights.a[f], ptx::wgmma_columns(tile + 32 * f));
    ptx::wgmma_commit();
    ptx::wgmma_pin(sums);
  }
  /// All but the last product are complete.
  __device__ static void wait_for_others() { ptx::wgmma_wait<1>(); }
  template <uint32_t kGroups>
  __device__ static void wait_for_all(float (&sums)[kGroups][4]) {
    ptx::wgmma_wait<0>();
    ptx::wgmma_pin(sums);
  }
};

/// mma.sync, each warp for itself: every architecture.
struct WarpProducts {
  static constexpr bool kIsAsync = false;
  static constexpr uint32_t kSlotGroups = 8;  ///< with 16 ptxas spills on sm_100a
  template <uint32_t kGroups>
  __device__ static void multiply(float (&sums)[kGroups][4], const WeightFragments& weights,
                                  const uint8_t* tile) {
    const uint32_t row = threadIdx.x % 8, matrix = threadIdx.x % 32 / 8;
#pragma unroll
    for (uint32_t group = 0; group < kGroups; ++group)
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {  // 32 k
        uint32_t b[4];
        const uint32_t chunk = (half * 4 + matrix) ^ row;
        ptx::ldmatrix_x4(b, tile + group * kSlotTileBytes + row * 128 + chunk * 16);
        ptx::mma_m16n8k16(sums[group], weights.a[2 * half], {b[0], b[1]});
        ptx::mma_m16n8k16(sums[group], weights.a[2 * half + 1], {b[2], b[3]});
      }
  }
  __device__ static void wait_for_others() {}
  template <uint32_t kGroups>
  __device__ static void wait_for_all(float (&/*sums*/)[kGroups][4]) {}
};

}  // namespace mimo_rt::cuda
