// FP8 activations for the expert tasks: rows are rounded by a kernel of their own, then multiplied.
// They are half the bytes of BF16, which is all that this saves on sm_90a and sm_100a: their
// tensor cores have no mma.sync of E4M3, so that ptxas unpacks both operands to FP16 and issues as
// many HMMA as BF16 takes (device/ptx/matrix.cuh).
#pragma once

#include "cuda/device/tasks/expert_mlp.cuh"

namespace mimo_rt::cuda {

inline constexpr float kMaxE4m3 = 448.0f;
inline constexpr float kLeastRow = 0x1p-100f;  ///< rows without a larger element count as 0

struct Fp8Activations {
  using Element = uint8_t;
  using Fragments = E4m3Fragments;
  static constexpr uint32_t kWords = 4;  ///< a lane's, of 64 k

  __device__ static const ExpertFp8Rows& rows(const ExpertGateUpFp8Params& p) { return p.x8; }
  __device__ static const ExpertFp8Rows& rows(const ExpertDownFp8Params& p) { return p.act8; }

  template <typename Params>
  __device__ static const Element* row(const Params& p, uint32_t i) {
    return rows(p).codes.row(i);
  }
  __device__ static void load(const Element* row, uint32_t k_begin, uint32_t k,
                              uint32_t (&words)[kWords]) {
    ptx::Words4 codes{};
    if (k_begin < k) codes = ptx::load_16_bytes_keep(row + k_begin);
#pragma unroll
    for (uint32_t i = 0; i < kWords; ++i) words[i] = codes.word[i];
  }
  __device__ static Fragments load_weights(const uint8_t* tile, uint32_t lane_idx) {
    return load_tile_e4m3(tile, lane_idx);
  }
  __device__ static void multiply(float (&sums)[4], const Fragments& weights,
                                  const uint32_t (&words)[kWords]) {
    float products[4] = {};
#pragma unroll
    for (uint32_t j = 0; j < 2; ++j)
      ptx::mma_m16n8k32_e4m3(products, weights.a[j], {words[2 * j], words[2 * j + 1]});
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) sums[i] = fmaf(weights.factor[i / 2], products[i], sums[i]);
  }
  template <typename Params>
  __device__ static float scale(const Params& p, uint32_t i) {
    return rows(p).scales[i];
  }
};

/// One warp: rounds a row of `k` values. Lane i does 8 of every 256 k; their codes lie in the order
/// that products take them (math/mxfp4.cuh): k + {4, 2, 0, 6}, then k + {5, 3, 1, 7}.
__device__ inline void round_row(const uint16_t* row, uint32_t k, uint8_t* codes, float* scale) {
  const uint32_t lane_idx = threadIdx.x % 32;
  float largest = 0.0f;
  for (uint32_t i = 8 * lane_idx; i < k; i += 256) {
    const ptx::Words4 words = ptx::load_16_bytes_keep(row + i);
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j)
      largest = fmaxf(largest, fmaxf(fabsf(ptx::low_bf16(words.word[j])),
                                     fabsf(ptx::high_bf16(words.word[j]))));
  }
#pragma unroll
  for (uint32_t mask = 16; mask != 0; mask /= 2)
    largest = fmaxf(largest, ptx::shuffle_xor(largest, mask));
  const float factor = largest > kLeastRow ? kMaxE4m3 / largest : 0.0f;
  if (lane_idx == 0) *scale = largest / kMaxE4m3;
  for (uint32_t i = 8 * lane_idx; i < k; i += 256) {
    const ptx::Words4 words = ptx::load_16_bytes_keep(row + i);
    float low[4], high[4];
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      low[j] = ptx::low_bf16(words.word[j]) * factor;
      high[j] = ptx::high_bf16(words.word[j]) * factor;
    }
    auto* out = reinterpret_cast<uint32_t*>(codes + i);
    out[0] = ptx::to_e4m3x2(low[2], low[1]) | ptx::to_e4m3x2(low[0], low[3]) << 16;
    out[1] = ptx::to_e4m3x2(high[2], high[1]) | ptx::to_e4m3x2(high[0], high[3]) << 16;
  }
}

/// All warps of blocks of compute warps: rows 0 .. num_rows - 1.
__device__ inline void round_rows(const RowsView<const uint16_t>& in, uint32_t num_rows, uint32_t k,
                                  const ExpertFp8Rows& out) {
  const uint32_t stride = gridDim.x * kComputeWarps;
  for (uint32_t i = blockIdx.x * kComputeWarps + threadIdx.x / 32; i < num_rows; i += stride)
    round_row(in.row(i), k, out.codes.row(i), out.scales + i);
}

}  // namespace mimo_rt::cuda
