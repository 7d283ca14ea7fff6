// bf16(x * rsqrt(mean(x²) + eps) * weight), FP32 inside, rounded once: the parts that the projection
// task fuses, and a task of its own for many tokens. Both give the same bits.
#pragma once

#include "cuda/device/tasks/weight_stream.cuh"
#include "cuda/projection_params.h"

namespace mimo_rt::cuda {

/// 1 / rms of a row, in all lanes of the warp. Each lane sums the squares of 8 neighbours in every
/// 256, ascending, then the lanes are added as a tree.
__device__ inline float inverse_rms_of(const uint16_t* row, uint32_t k, float eps) {
  float sum = 0.0f;
  for (uint32_t i = threadIdx.x % 32 * 8; i < k; i += 256) {
    const ptx::Words4 words = ptx::load_16_bytes_keep(row + i);
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      const float low = ptx::low_bf16(words.word[j]), high = ptx::high_bf16(words.word[j]);
      sum = fmaf(high, high, fmaf(low, low, sum));
    }
  }
#pragma unroll
  for (uint32_t mask = 16; mask != 0; mask /= 2) sum += ptx::shuffle_xor(sum, mask);
  return 1.0f / sqrtf(sum / static_cast<float>(k) + eps);
}

/// Normalises `kPairs` pairs of neighbours whose weights begin at `weight`.
template <uint32_t kPairs>
__device__ __forceinline__ void normalise_pairs(const float* weight, float inverse_rms,
                                                uint32_t (&words)[kPairs]) {
#pragma unroll
  for (uint32_t i = 0; i < kPairs; i += 2) {
    const ptx::Words4 weights = ptx::load_16_bytes_keep(weight + 2 * i);
#pragma unroll
    for (uint32_t j = 0; j < 2; ++j) {
      const uint32_t x = words[i + j];
      words[i + j] = ptx::to_bf16x2(
          ptx::low_bf16(x) * inverse_rms * ptx::as_float(weights.word[2 * j]),
          ptx::high_bf16(x) * inverse_rms * ptx::as_float(weights.word[2 * j + 1]));
    }
  }
}

/// A unit is one token; each compute warp does every eighth unit of its block.
__device__ inline void compute_rms_norm(const RmsNormParams& p, UnitRange range) {
  const uint32_t warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
  for (uint32_t u = range.first + warp_idx * range.stride; u < range.limit(p.num_tokens);
       u += kComputeWarps * range.stride) {
    const uint16_t* row = p.x.row(p.row_ids ? p.row_ids[u] : u);
    const float inverse_rms = inverse_rms_of(row, p.k, p.eps);
    for (uint32_t k = lane_idx * 8; k < p.k; k += 256) {
      ptx::Words4 words = ptx::load_16_bytes_keep(row + k);
      normalise_pairs(p.weight + k, inverse_rms, words.word);
      *reinterpret_cast<ptx::Words4*>(p.out.row(u) + k) = words;
    }
  }
}

}  // namespace mimo_rt::cuda
