// The attention task: a pair of role functions, as the expert tasks. A unit is one kv head, one
// split of the positions and up to 128 (row, q head) pairs: the block brings every key and value
// of the split to shared memory once and uses it for all of them. (More pairs need more FP32
// results than a block has registers; their units bring the keys again, out of L2.)
//
// Order of the sums. Positions are cut at multiples of split_keys, a split at multiples of 64 keys.
// A chunk of 64 has its own softmax: scores over the dims ascending, the largest, the weights
// (math/attention_tiles.cuh), their products with the values, keys ascending. Chunks of a split are
// merged one after the other, the splits in the combining task, ascending. A chunk that a row does
// not see leaves all its bits as they are, so the number of rows, of blocks and of splits in flight
// changes nothing.
//
// A product tile is 16 pairs. Few tiles share out the keys of a chunk (scores) and the dims
// (values) among 8, 4 or 2 warps each; with more than 4 tiles each warp has its own.
#pragma once

#include "cuda/device/tasks/attention_units.cuh"

namespace mimo_rt::cuda {

/// Brings q of the unit's pairs to shared memory; zero up to the next whole tile. A compute barrier
/// must follow.
__device__ inline void keep_q(AttentionShared& shared, const AttentionParams& p,
                              const AttentionUnit& unit, uint32_t num_tiles) {
  const uint32_t q_per_kv = p.num_q_heads / p.num_kv_heads, words_per_row = p.qk_head_dim / 8;
  for (uint32_t i = threadIdx.x; i < num_tiles * 16 * words_per_row; i += kComputeWarps * 32) {
    const uint32_t local = i / words_per_row, word = i % words_per_row;
    const uint32_t pair = unit.first_pair + local;
    ptx::Words4 words{};
    if (local < unit.num_pairs) {
      const uint32_t head = unit.kv_head * q_per_kv + pair % q_per_kv;
      words = ptx::load_16_bytes_keep(p.q.row(pair / q_per_kv) + head * p.qk_head_dim + word * 8);
    }
    *reinterpret_cast<ptx::Words4*>(shared.q + local * q_stride(p.qk_head_dim) + word * 8) = words;
  }
}

/// One warp's share of a unit: a tile of 16 pairs, or a part of its keys and dims.
template <uint32_t kWarpsPerTile>
struct TileShare {
  static constexpr uint32_t kTiles = kChunkTiles / kWarpsPerTile;        ///< of keys
  static constexpr uint32_t kPairs = kMaxVHeadDim / 16 / kWarpsPerTile;  ///< of 8 dims
  uint32_t tile, part;
  float sums[kPairs][2][4];
  float max[2], weight[2];

  __device__ TileShare()
      : tile(threadIdx.x / 32 / kWarpsPerTile), part(threadIdx.x / 32 % kWarpsPerTile) {
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      max[half] = kNoScore;
      weight[half] = 0.0f;
    }
#pragma unroll
    for (uint32_t pair = 0; pair < kPairs; ++pair)
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) sums[pair][0][i] = sums[pair][1][i] = 0.0f;
  }

  /// Scores of all keys of a chunk, those of other warps through shared memory.
  __device__ void score(AttentionShared& shared, const AttentionParams& p, uint32_t k_stride,
                        const ChunkStages& stages, float (&s)[kChunkTiles][4]) const {
    float own[kTiles][4];
    const uint32_t first = part * kTiles;
    stages.wait(first, first + kTiles);
    multiply_keys(shared.q + tile * 16 * q_stride(p.qk_head_dim), q_stride(p.qk_head_dim),
                  p.qk_head_dim, stages[first], k_stride, own);
    if constexpr (kWarpsPerTile == 1) {
#pragma unroll
      for (uint32_t i = 0; i < kChunkTiles; ++i)
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j) s[i][j] = own[i][j];
    } else {
      const uint32_t g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
      auto& scores = shared.scores[tile];
#pragma unroll
      for (uint32_t i = 0; i < kTiles; ++i)
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j)
          scores[g + j / 2 * 8][(part * kTiles + i) * kTileKeys + 2 * q + j % 2] = own[i][j];
      compute_barrier();
#pragma unroll
      for (uint32_t i = 0; i < kChunkTiles; ++i)
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j)
          s[i][j] = scores[g + j / 2 * 8][i * kTileKeys + 2 * q + j % 2];
    }
  }

  /// Adds a chunk to what came before it.
  template <bool kIsPartial>
  __device__ void add_values(const AttentionParams& p, const ChunkWeights& weights,
                             uint32_t v_stride, const ChunkStages& stages, uint32_t begin,
                             uint32_t end) {
    float before[2], now[2];
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const float new_max = fmaxf(max[half], weights.max[half]);
      before[half] = ptx::exp2_approx(max[half] - new_max);
      now[half] = ptx::exp2_approx(weights.max[half] - new_max);
      max[half] = new_max;
      weight[half] = fmaf(weights.sum[half], now[half], weight[half] * before[half]);
    }
#pragma unroll
    for (uint32_t pair = 0; pair < kPairs; ++pair) {
      const uint32_t dims = (part * kPairs + pair) * 16;
      if (dims >= p.v_head_dim) break;
      float product[2][4];
      multiply_values<kIsPartial>(weights, stages[kChunkTiles] + dims, v_stride, begin, end,
                                  product);
#pragma unroll
      for (uint32_t n = 0; n < 2; ++n)
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i)
          sums[pair][n][i] = fmaf(product[n][i], now[i / 2], sums[pair][n][i] * before[i / 2]);
    }
  }

  /// Works out the unit once more: the products need its registers.
  __device__ void store(const AttentionParams& p, uint32_t unit_idx) const {
    const AttentionCall call(p);
    const AttentionUnit unit(p, call, unit_idx);
    const uint32_t g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const PartialResults results(p, call, unit.split, unit.kv_head);
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t local = tile * 16 + g + half * 8;
      if (local >= unit.num_pairs) continue;
      float* row = results.sums(p, unit.first_pair + local);
#pragma unroll
      for (uint32_t pair = 0; pair < kPairs; ++pair) {
        const uint32_t dims = (part * kPairs + pair) * 16;
        if (dims >= p.v_head_dim) break;
#pragma unroll
        for (uint32_t n = 0; n < 2; ++n)
#pragma unroll
          for (uint32_t i = 0; i < 2; ++i)
            row[dims + 8 * n + 2 * q + i] = sums[pair][n][2 * half + i];
      }
      if (part != 0 || q != 0) continue;
      float* statistics = results.statistics(p, unit.first_pair + local);
      statistics[0] = max[half];
      statistics[1] = weight[half];
    }
  }
};

/// The keys that rows g and g + 8 of a tile see, from `first_key` on. Worked out for every chunk:
/// the products need the registers.
__device__ inline VisibleKeys visible_keys(const AttentionParams& p, const AttentionUnit& unit,
                                           uint32_t position, uint32_t tile, uint32_t first_key) {
  VisibleKeys visible;
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t local = tile * 16 + threadIdx.x % 32 / 4 + half * 8;
    const uint32_t row = p.first_row + (unit.first_pair + local) / (p.num_q_heads / p.num_kv_heads);
    KeySpan seen = unit.keys;  // of a draft's block: all
    if (!unit.is_block) {
      seen = {first_seen(p, position, row), p.block.blocks ? position : position + row + 1};
      if (seen.first > seen.end) seen.first = seen.end;
    }
    visible.begin[half] = seen.first - first_key;
    visible.count[half] = local < unit.num_pairs ? seen.end - seen.first : 0;
  }
  return visible;
}

/// All chunks of a unit. All compute warps.
template <uint32_t kWarpsPerTile>
__device__ void attend_unit(AttentionShared& shared, const AttentionParams& p,
                            const AttentionCall& call, const AttentionUnit& unit,
                            uint32_t unit_idx, uint32_t& ticket) {
  const uint32_t warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
  const KeySpan keys = unit.keys;
  const uint32_t k_stride = unit.is_block ? p.block.k_stride : p.kv.k_stride;
  const uint32_t v_stride = unit.is_block ? p.block.v_stride : p.kv.v_stride;
  TileShare<kWarpsPerTile> share;
  const bool has_rows = share.tile * 16 < unit.num_pairs;
  for (uint32_t first_key = keys.first / kChunkKeys * kChunkKeys; first_key < keys.end;
       first_key += kChunkKeys) {
    const ChunkStages stages{shared.ring, ticket};
    if (kWarpsPerTile != 1 || has_rows) {  // all of a barrier, or none
      float s[kChunkTiles][4];
      share.score(shared, p, k_stride, stages, s);
      const ChunkWeights weights =
          weigh_keys(s, p.scale * kLog2E,
                     visible_keys(p, unit, call.position, share.tile, first_key));
      const uint32_t begin = keys.first > first_key ? keys.first - first_key : 0;
      const uint32_t end = keys.end - first_key;
      stages.wait(kChunkTiles, kChunkTickets);
      if (begin != 0 || end < kChunkKeys)
        share.template add_values<true>(p, weights, v_stride, stages, begin, end);
      else
        share.template add_values<false>(p, weights, v_stride, stages, begin, end);
    }
    compute_barrier();  // all have read: the stages, and the scores of the tile
    shared.ring.release(ticket + warp_idx, lane_idx);
    shared.ring.release(ticket + kComputeWarps + warp_idx, lane_idx);
    ticket += kChunkTickets;
  }
  share.store(p, unit_idx);
}

/// `kMaxTiles`: no unit has more product tiles.
template <uint32_t kMaxTiles>
__device__ __forceinline__ void compute_attention(AttentionShared& shared,
                                                  const AttentionParams& p, UnitRange range,
                                                  uint32_t& ticket) {
  static_assert(kChunkTickets == 2 * kComputeWarps);
  for (uint32_t u = range.first;; u += range.stride) {
    const AttentionCall call(p);
    if (u >= range.limit(call.num_units(p))) return;
    const AttentionUnit unit(p, call, u);
    const uint32_t num_tiles = (unit.num_pairs + 15) / 16;
    keep_q(shared, p, unit, num_tiles <= 2 ? num_tiles : kComputeWarps);
    compute_barrier();
    if (kMaxTiles == 1 || num_tiles == 1)
      attend_unit<8>(shared, p, call, unit, u, ticket);
    else if (num_tiles == 2)
      attend_unit<4>(shared, p, call, unit, u, ticket);
    else if (num_tiles <= 4)
      attend_unit<2>(shared, p, call, unit, u, ticket);
    else
      attend_unit<1>(shared, p, call, unit, u, ticket);
  }
}

}  // namespace mimo_rt::cuda
