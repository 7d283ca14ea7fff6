// bf16(x * rsqrt(mean(x²) + eps) * weight), FP32 inside, rounded once: the parts that the projection
// task fuses, with a warp for each row, and a task of its own, with a block for each row. All give the same bits.
//
// Order of the sum. A row is cut into chunks of 256, dealt out to 8 parts in turn. In a part each lane adds up the
// squares of its 8 neighbours in every chunk, ascending, then the lanes are added as a tree; then the parts, in order.
#pragma once

#include "cuda/device/math/block_sums.cuh"
#include "cuda/device/tasks/weight_stream.cuh"
#include "cuda/projection_params.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kNormParts = kComputeWarps, kNormChunk = 256;

__device__ __forceinline__ float add_squares(float sum, const ptx::Words4& words) {
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j) {
    const float low = ptx::low_bf16(words.word[j]), high = ptx::high_bf16(words.word[j]);
    sum = fmaf(high, high, fmaf(low, low, sum));
  }
  return sum;
}

__device__ __forceinline__ float inverse_rms_from(float sum, uint32_t k, float eps) {
  return 1.0f / sqrtf(sum / static_cast<float>(k) + eps);
}

/// 1 / rms of a row, in all lanes of the warp.
__device__ inline float inverse_rms_of(const uint16_t* row, uint32_t k, float eps) {
  float parts[kNormParts] = {};
  for (uint32_t begin = threadIdx.x % 32 * 8; begin < k; begin += kNormParts * kNormChunk)
#pragma unroll
    for (uint32_t part = 0; part < kNormParts; ++part)
      if (begin + part * kNormChunk < k)
        parts[part] = add_squares(parts[part], ptx::load_16_bytes_keep(row + begin + part * kNormChunk));
  float sum = 0.0f;
#pragma unroll
  for (uint32_t part = 0; part < kNormParts; ++part) sum += warp_sum(parts[part]);
  return inverse_rms_from(sum, k, eps);
}

/// Two pairs of neighbours, words[0] and words[1], with their weights.
__device__ __forceinline__ void normalise_two(const ptx::Words4& weights, float inverse_rms, uint32_t* words) {
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i)
    words[i] = ptx::to_bf16x2(ptx::low_bf16(words[i]) * inverse_rms * ptx::as_float(weights.word[2 * i]),
                              ptx::high_bf16(words[i]) * inverse_rms * ptx::as_float(weights.word[2 * i + 1]));
}

/// `kPairs` pairs of neighbours whose weights begin at `weight`.
template <uint32_t kPairs>
__device__ __forceinline__ void normalise_pairs(const float* weight, float inverse_rms,
                                                uint32_t (&words)[kPairs]) {
#pragma unroll
  for (uint32_t i = 0; i < kPairs; i += 2)
    normalise_two(ptx::load_16_bytes_keep(weight + 2 * i), inverse_rms, words + i);
}

struct NormShared {
  float parts[2][kNormParts];  ///< of a row and of the next
};

/// This lane's chunks of a row, one warp a part. The first kKept stay in registers: one trip to memory for all of them,
/// which is most of the time that a row takes. More come again.
struct NormChunks {
  static constexpr uint32_t kKept = 3;  ///< rows of up to 6144
  static constexpr uint32_t kStride = kNormParts * kNormChunk;
  const RmsNormParams& p;
  const uint16_t* row;
  uint32_t first;
  ptx::Words4 words[kKept];

  __device__ NormChunks(const RmsNormParams& params, const uint16_t* x)
      : p(params), row(x), first(threadIdx.x / 32 * kNormChunk + threadIdx.x % 32 * 8) {
#pragma unroll
    for (uint32_t i = 0; i < kKept; ++i) words[i] = ptx::load_16_bytes_keep(row + (place(i) < p.k ? place(i) : 0));
  }
  __device__ uint32_t place(uint32_t i) const { return first + i * kStride; }
  /// Of the part, in all lanes.
  __device__ float sum_squares() const {
    float sum = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < kKept; ++i)
      if (place(i) < p.k) sum = add_squares(sum, words[i]);
#pragma unroll 1
    for (uint32_t k = place(kKept); k < p.k; k += kStride) sum = add_squares(sum, ptx::load_16_bytes_keep(row + k));
    return warp_sum(sum);
  }
  __device__ void store(float inverse_rms, uint16_t* out) {
#pragma unroll
    for (uint32_t i = 0; i < kKept; ++i)  // without branches, which would hold up the next weights
      normalise_pairs(p.weight + (place(i) < p.k ? place(i) : 0), inverse_rms, words[i].word);
#pragma unroll
    for (uint32_t i = 0; i < kKept; ++i)  // as a store would
      if (place(i) < p.k) *reinterpret_cast<ptx::Words4*>(out + place(i)) = words[i];
#pragma unroll 1
    for (uint32_t k = place(kKept); k < p.k; k += kStride) {
      ptx::Words4 rest = ptx::load_16_bytes_keep(row + k);
      normalise_pairs(p.weight + k, inverse_rms, rest.word);
      *reinterpret_cast<ptx::Words4*>(out + k) = rest;
    }
  }
};

/// All compute warps. A unit is one token.
__device__ inline void compute_rms_norm(NormShared& shared, const RmsNormParams& p, UnitRange range) {
  uint32_t turn = 0;
  for (uint32_t u = range.first; u < range.limit(p.num_tokens); u += range.stride, turn ^= 1) {
    NormChunks chunks(p, p.x.row(p.row_ids ? p.row_ids[u] : u));
    const float part = chunks.sum_squares();
    if (threadIdx.x % 32 == 0) shared.parts[turn][threadIdx.x / 32] = part;
    compute_barrier();  // whoever is at the next row has read those of the one before
    float sum = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < kNormParts; ++i) sum += shared.parts[turn][i];
    chunks.store(inverse_rms_from(sum, p.k, p.eps), p.out.row(u));
  }
}

}  // namespace mimo_rt::cuda
