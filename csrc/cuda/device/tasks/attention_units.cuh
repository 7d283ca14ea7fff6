// How a call of the attention task is cut into units, and the loader's half of the task.
#pragma once

#include "cuda/device/math/attention_tiles.cuh"
#include "cuda/device/tasks/weight_stream.cuh"

namespace mimo_rt::cuda {

inline constexpr uint32_t kChunkTickets = 2 * kChunkTiles;  ///< tiles of keys, then of values
static_assert(2 * kChunkTickets <= kNumStages, "one chunk is loaded while another is used");
static_assert(kTileKeys * kMaxKvStride * 2 <= kStageBytes);

// Elements from row to row of q in shared memory: the rows of a tile begin at different banks.
__device__ __forceinline__ uint32_t q_stride(uint32_t qk_head_dim) { return qk_head_dim + 8; }

struct AttentionShared {
  WeightRing ring;
  /// Scores of tiles that several warps share; the stride spreads a fragment over all banks.
  float scores[kComputeWarps / 2][16][kChunkKeys + 8];
  alignas(16) uint16_t q[kGroupRows * (kMaxQkHeadDim + 8)];
};

/// The tiles of a chunk in the ring. They lie one behind the other: the first ticket of a task is a
/// multiple of kChunkTickets.
struct ChunkStages {
  WeightRing& ring;
  uint32_t ticket;  ///< of the first tile

  /// All lanes: the tiles [begin, end) are there afterwards.
  __device__ void wait(uint32_t begin, uint32_t end) const {
#pragma unroll 1
    for (uint32_t i = begin; i < end; ++i) ring.wait(ticket + i);
  }
  __device__ const uint16_t* operator[](uint32_t i) const {
    return reinterpret_cast<const uint16_t*>(ring.stages[ticket % kNumStages + i]);
  }
};

/// Keys that somebody sees: positions [first, end), or rows of a draft's block.
struct KeySpan {
  uint32_t first, end;
};

/// The first position that a row of the call at `position` sees.
__device__ __forceinline__ uint32_t first_seen(const AttentionParams& p, uint32_t position,
                                               uint32_t row) {
  const uint32_t end = position + row + 1;
  return p.window_tokens != 0 && end > p.window_tokens ? end - p.window_tokens : 0;
}

/// The largest groups of pairs with which three quarters of the blocks have a unit; `num_spans`: splits
/// that hold keys, of all kv heads. Small groups read the keys from L2 more often, but share the
/// products of few rows out among the multiprocessors.
__device__ __forceinline__ uint32_t choose_group_shift(uint32_t num_pairs, uint32_t num_spans,
                                                       uint32_t num_blocks) {
  uint32_t shift = kMaxGroupShift;
  while (shift > kMinGroupShift && 4 * (((num_pairs - 1) >> shift) + 1) * num_spans < 3 * num_blocks)
    --shift;
  return shift;
}

/// What a call looks like once the position is known.
struct AttentionCall {
  uint32_t position;
  KeySpan cache;               ///< positions of the cache that some row sees
  uint32_t first_split, num_cache_splits, num_splits;
  uint32_t num_pairs;          ///< (row, q head) pairs of a kv head
  uint32_t group_shift, num_groups;

  __device__ explicit AttentionCall(const AttentionParams& p) : position(*p.position) {
    if (position >= p.max_context || p.num_rows > p.max_context - position) ptx::trap();
    cache = {first_seen(p, position, p.first_row),
             p.block.blocks ? position : position + p.num_rows};
    first_split = cache.first / p.split_keys;
    num_cache_splits =
        cache.first < cache.end ? (cache.end - 1) / p.split_keys + 1 - first_split : 0;
    num_splits = num_cache_splits + (p.block.blocks ? 1 : 0);
    num_pairs = p.num_rows * (p.num_q_heads / p.num_kv_heads);
    group_shift = choose_group_shift(num_pairs, num_splits * p.num_kv_heads, gridDim.x);
    num_groups = ((num_pairs - 1) >> group_shift) + 1;
  }
  __device__ uint32_t num_units(const AttentionParams& p) const {
    return num_groups * num_splits * p.num_kv_heads;
  }
};

/// Partial results of a split: per pair v_head_dim sums; behind those of all splits, per pair the
/// largest exponent and the sum of the weights.
struct PartialResults {
  uint64_t first_pair;  ///< of the split and kv head
  uint64_t num_pairs;   ///< of all splits and kv heads

  __device__ PartialResults(const AttentionParams& p, const AttentionCall& call, uint32_t split,
                            uint32_t kv_head)
      : first_pair((uint64_t{split} * p.num_kv_heads + kv_head) * call.num_pairs),
        num_pairs(uint64_t{call.num_splits} * p.num_kv_heads * call.num_pairs) {}
  __device__ float* sums(const AttentionParams& p, uint32_t pair) const {
    return p.partials + (first_pair + pair) * p.v_head_dim;
  }
  __device__ float* statistics(const AttentionParams& p, uint32_t pair) const {
    return p.partials + num_pairs * p.v_head_dim + (first_pair + pair) * 2;
  }
};

struct AttentionUnit {
  uint32_t kv_head, split, first_pair, num_pairs;
  bool is_block;  ///< keys are the rows of a draft's block
  KeySpan keys;

  __device__ AttentionUnit(const AttentionParams& p, const AttentionCall& call, uint32_t unit) {
    kv_head = unit % p.num_kv_heads;
    split = unit / p.num_kv_heads % call.num_splits;
    first_pair = unit / p.num_kv_heads / call.num_splits << call.group_shift;
    const uint32_t rest = call.num_pairs - first_pair, most = 1u << call.group_shift;
    num_pairs = rest < most ? rest : most;
    is_block = split == call.num_cache_splits;
    const uint32_t begin = (call.first_split + split) * p.split_keys, end = begin + p.split_keys;
    keys = {begin > call.cache.first ? begin : call.cache.first,
            end < call.cache.end ? end : call.cache.end};
    if (is_block) keys = {0, p.num_block_rows};
  }
};

/// Loader warp. Lane i brings tile i of a chunk: those of the keys, then those of the values. Tiles
/// without keys are signalled empty.
__device__ inline void load_chunk(WeightRing& ring, const KvView& kv, const AttentionUnit& unit,
                                  uint32_t first_key, uint32_t ticket, uint64_t l2_policy) {
  const uint32_t lane_idx = threadIdx.x % 32;
  if (lane_idx >= kChunkTickets) return;
  const bool is_value = lane_idx >= kChunkTiles;
  const uint32_t pos = first_key + lane_idx % kChunkTiles * kTileKeys;
  const uint32_t stride = is_value ? kv.v_stride : kv.k_stride;
  const uint8_t* source = nullptr;
  uint32_t num_keys = 0;
  if (pos < unit.keys.end && pos + kTileKeys > unit.keys.first) {
    const uint32_t rest = unit.keys.end - pos;
    num_keys = rest < kTileKeys ? rest : kTileKeys;
    const uint64_t block = kv.pages ? kv.pages[pos / kv.block_rows] : 0;
    const uint64_t row = uint64_t{unit.kv_head} * kv.block_rows + pos % kv.block_rows;
    source = kv.blocks + block * kv.block_bytes + (is_value ? kv.v_begin : 0) + row * stride * 2;
  }
  ring.fill(ticket + lane_idx, source, num_keys * stride * 2, l2_policy);
}

__device__ inline void load_attention(AttentionShared& shared, const AttentionParams& p,
                                      UnitRange range, uint32_t& ticket) {
  const uint64_t l2_policy = ptx::evict_first_policy();
  const AttentionCall call(p);
  for (uint32_t u = range.first; u < range.limit(call.num_units(p)); u += range.stride) {
    const AttentionUnit unit(p, call, u);
    for (uint32_t first_key = unit.keys.first / kChunkKeys * kChunkKeys; first_key < unit.keys.end;
         first_key += kChunkKeys) {
      load_chunk(shared.ring, unit.is_block ? p.block : p.kv, unit, first_key, ticket, l2_policy);
      ptx::sync_warp();
      ticket += kChunkTickets;
    }
  }
}

}  // namespace mimo_rt::cuda
