// One warp's products and softmax over a chunk of 64 keys, which lies in shared memory as 8 tiles
// of 8 keys and 8 tiles of their values.
//
// The A operand of every product is 16 (row, q head) pairs that share a kv head. With 16 q heads
// per kv head one token fills it, so the tensor cores pay from the first row on: 20 products per 8
// keys of a 192/128 head instead of 40960 FMAs, 1280 instructions.
#pragma once

#include "cuda/attention_params.h"
#include "cuda/device/ptx/ptx.cuh"

namespace mimo_rt::cuda {

inline constexpr uint32_t kChunkTiles = kChunkKeys / kTileKeys;
inline constexpr uint32_t kStageElements = kStageBytes / 2;
inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kNoScore = -1e30f;  ///< the largest of no scores; its weight is 0, never NaN

/// Which keys this lane's two rows (g and g + 8 of the product tile) see: `begin` is relative to
/// the first key of the chunk and wraps around.
struct VisibleKeys {
  uint32_t begin[2], count[2];

  __device__ bool sees(uint32_t half, uint32_t key) const {
    return key - begin[half] < count[half];
  }
};

/// Scores of 16 rows against the 8 keys of each of kTiles stages, which lie one behind the other.
/// C fragments: s[tile][i] belongs to row g + i / 2 * 8 and key 2q + i % 2. Sums run over the dims,
/// ascending.
template <uint32_t kTiles>
__device__ void multiply_keys(const uint16_t* q_rows, uint32_t q_stride, uint32_t qk_dim,
                              const uint16_t* keys, uint32_t k_stride, float (&s)[kTiles][4]) {
  const uint32_t lane_idx = threadIdx.x % 32, matrix = lane_idx / 8;
  const uint16_t* q = q_rows + lane_idx % 16 * q_stride + lane_idx / 16 * 8;
  // A load brings 16 dims of two tiles; of one tile, twice the same.
  keys += lane_idx % 8 * k_stride + matrix % 2 * 8;
  if constexpr (kTiles > 1) keys += matrix / 2 * kStageElements;
#pragma unroll
  for (uint32_t tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) s[tile][i] = 0.0f;
#pragma unroll 2
  for (uint32_t dim = 0; dim < qk_dim; dim += 16) {
    uint32_t a[4];
    ptx::ldmatrix_x4(a, q + dim);
#pragma unroll
    for (uint32_t tile = 0; tile < kTiles; tile += 2) {
      uint32_t b[4];
      ptx::ldmatrix_x4(b, keys + tile * kStageElements + dim);
      ptx::mma_m16n8k16(s[tile], a, {b[0], b[1]});
      if constexpr (kTiles > 1) ptx::mma_m16n8k16(s[tile + 1], a, {b[2], b[3]});
    }
  }
}

/// Weights 2^(t - max) of a chunk, t = factor * score, rounded to BF16, as A fragments:
/// words[tile][half]; and for rows g and g + 8 the largest t and the sum of the rounded weights.
struct ChunkWeights {
  uint32_t words[kChunkTiles][2];
  float max[2], sum[2];
};

/// `factor`: turns scores into exponents of 2. Sums: a lane's keys ascending, then the four lanes
/// of a row as a tree.
__device__ inline ChunkWeights weigh_keys(float (&s)[kChunkTiles][4], float factor,
                                          const VisibleKeys& visible) {
  ChunkWeights weights;
  const uint32_t first_key = threadIdx.x % 4 * 2;
  weights.max[0] = weights.max[1] = kNoScore;
#pragma unroll
  for (uint32_t tile = 0; tile < kChunkTiles; ++tile)
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t key = tile * kTileKeys + first_key + i % 2;
      s[tile][i] = visible.sees(i / 2, key) ? s[tile][i] * factor : ptx::as_float(0xff800000u);
      weights.max[i / 2] = fmaxf(weights.max[i / 2], s[tile][i]);
    }
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    float& max = weights.max[half];
#pragma unroll
    for (uint32_t mask = 1; mask < 4; mask *= 2) max = fmaxf(max, ptx::shuffle_xor(max, mask));
    float sum = 0.0f;
#pragma unroll
    for (uint32_t tile = 0; tile < kChunkTiles; ++tile) {
      const uint32_t word = ptx::to_bf16x2(ptx::exp2_approx(s[tile][2 * half] - max),
                                           ptx::exp2_approx(s[tile][2 * half + 1] - max));
      weights.words[tile][half] = word;
      sum += ptx::low_bf16(word) + ptx::high_bf16(word);
    }
#pragma unroll
    for (uint32_t mask = 1; mask < 4; mask *= 2) sum += ptx::shuffle_xor(sum, mask);
    weights.sum[half] = sum;
  }
  return weights;
}

/// Which of the two keys in a word of a B fragment may be used, as a mask. What lies in rows beyond
/// the keys of the call may be NaN, which a weight of 0 would not cancel.
__device__ __forceinline__ uint32_t stored_mask(uint32_t key, uint32_t begin, uint32_t end) {
  return (key >= begin && key < end ? 0x0000ffffu : 0u) |
         (key + 1 >= begin && key + 1 < end ? 0xffff0000u : 0u);
}

/// sums[0], sums[1] = weights times 16 dims of the values, keys ascending. `values`: the first of
/// the dims in the first of the chunk's stages. Keys outside [begin, end) of the chunk are not
/// there.
template <bool kIsPartial>
__device__ void multiply_values(const ChunkWeights& weights, const uint16_t* values,
                                uint32_t v_stride, uint32_t begin, uint32_t end,
                                float (&sums)[2][4]) {
  const uint32_t lane_idx = threadIdx.x % 32, matrix = lane_idx / 8;
  values += matrix % 2 * kStageElements + lane_idx % 8 * v_stride + matrix / 2 * 8;
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) sums[0][i] = sums[1][i] = 0.0f;
#pragma unroll
  for (uint32_t step = 0; step < kChunkTiles / 2; ++step) {
    uint32_t b[4];
    ptx::ldmatrix_x4_transposed(b, values + 2 * step * kStageElements);
    if constexpr (kIsPartial)
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        b[i] &= stored_mask((2 * step + i % 2) * kTileKeys + lane_idx % 4 * 2, begin, end);
    const uint32_t a[4] = {weights.words[2 * step][0], weights.words[2 * step][1],
                           weights.words[2 * step + 1][0], weights.words[2 * step + 1][1]};
    ptx::mma_m16n8k16(sums[0], a, {b[0], b[1]});
    ptx::mma_m16n8k16(sums[1], a, {b[2], b[3]});
  }
}

}  // namespace mimo_rt::cuda
