// 16 rows x 64 k of weights in the registers of a warp, and their product with activations. Which k
// a fragment holds: see weights/cuda_tiles.h.
#pragma once

#include "cuda/device/ptx/ptx.cuh"

namespace mimo_rt::cuda {

/// One lane's part of 16 rows x 64 k as the A operands of four products.
struct WeightFragments {
  uint32_t a[4][4];
};

/// sums += 16 rows x 64 k of weights times 8 columns of activations.
__device__ __forceinline__ void multiply_tile(float (&sums)[4], const WeightFragments& weights,
                                              const uint32_t (&words)[8]) {
#pragma unroll
  for (uint32_t f = 0; f < 4; ++f)
    ptx::mma_m16n8k16(sums, weights.a[f], {words[2 * f], words[2 * f + 1]});
}

}  // namespace mimo_rt::cuda
