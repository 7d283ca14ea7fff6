// The part that both expert kernels share: a stream of weight tiles goes through the ring, compute
// warps multiply it by activations, partial sums meet in shared memory.
//
// A *unit* is what a block does at a time; it is cut into *items*. An item is one row group over
// one segment of K, and belongs to one compute warp (item % kComputeWarps), which runs through its
// tiles in ascending k with one FP32 accumulator per output: the order of a sum depends on nothing
// else. Loader and compute warps walk the same items and so agree on the tickets of the ring.
#pragma once

#include "cuda/device/math/mxfp4.cuh"
#include "cuda/device/sync/ring.cuh"
#include "cuda/expert_mlp_params.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kColumns = 8;  // tokens of one product
inline constexpr uint32_t kMaxColumnGroups = kMaxExpertTokens / kColumns;

/// Weights of one item.
struct TileRun {
  const uint8_t* tiles;
  uint32_t num_tiles;
  uint32_t first_tile;  ///< along k
};

struct ExpertShared {
  // 20 floats per row of 16: the stores of a fragment touch all banks once.
  static constexpr uint32_t kPartialStride = 20;

  Ring<kNumStages, kStageTiles * kCudaTileBytes> ring;
  float partials[kMaxExpertSlots][kPartialStride];  ///< sums of items, 16 rows each
  // expert_down: the slots of each token, ascending; those of token t begin at token_begin[t].
  uint16_t token_slots[kMaxExpertSlots];
  float token_weights[kMaxExpertSlots];
  uint16_t token_begin[kMaxExpertTokens + 1];
};

/// Segment `segment` of `num_segments` of a row group.
__device__ __forceinline__ TileRun segment_run(const uint8_t* row_group, uint32_t num_tiles,
                                               uint32_t segment, uint32_t num_segments) {
  const uint32_t begin = num_tiles * segment / num_segments;
  const uint32_t end = num_tiles * (segment + 1) / num_segments;
  return {row_group + begin * kCudaTileBytes, end - begin, begin};
}

/// Stages that the longest segment takes; the shorter ones take as many.
__device__ __forceinline__ uint32_t stages_per_item(uint32_t num_tiles, uint32_t num_segments) {
  const uint32_t longest = (num_tiles + num_segments - 1) / num_segments;
  return (longest + kStageTiles - 1) / kStageTiles;
}

/// The items of a unit and their tickets. Eight items (one per compute warp) are in the ring side
/// by side: stage 0 of each, then stage 1 of each, and so on.
struct ItemTickets {
  uint32_t first_ticket;
  uint32_t num_items;
  uint32_t num_stages;  ///< per item

  __device__ uint32_t ticket(uint32_t item, uint32_t stage) const {
    const uint32_t lane = item % kComputeWarps, group_begin = item - lane;
    const uint32_t rest = num_items - group_begin;
    const uint32_t group_size = rest < kComputeWarps ? rest : kComputeWarps;
    return first_ticket + group_begin * num_stages + stage * group_size + lane;
  }
  __device__ uint32_t end() const { return first_ticket + num_items * num_stages; }
};

/// Loader warp: brings all items of a unit. `run_of(item)` gives the tiles. Lane i handles the
/// items of compute warp i, so that eight copies are prepared at a time.
template <typename RunOf>
__device__ void load_items(ExpertShared& shared, const ItemTickets& tickets, uint64_t l2_policy,
                           const RunOf& run_of) {
  const uint32_t lane_idx = threadIdx.x % 32;
  for (uint32_t begin = 0; begin < tickets.num_items; begin += kComputeWarps) {
    const uint32_t item = begin + lane_idx;
    if (lane_idx < kComputeWarps && item < tickets.num_items) {
      const TileRun run = run_of(item);
      for (uint32_t stage = 0; stage < tickets.num_stages; ++stage) {
        const uint32_t done = stage * kStageTiles;
        const uint32_t rest = run.num_tiles > done ? run.num_tiles - done : 0;
        const uint32_t num_tiles = rest < kStageTiles ? rest : kStageTiles;
        shared.ring.fill(tickets.ticket(item, stage), run.tiles + done * kCudaTileBytes,
                         num_tiles * kCudaTileBytes, l2_policy);
      }
    }
    ptx::sync_warp();
  }
}

/// One lane's activations: the rows of columns g, 8 + g, 16 + g, … of the product.
template <uint32_t kColumnGroups>
struct ActivationRows {
  const uint16_t* row[kColumnGroups];  ///< nullptr: no such column
  uint32_t k;

  /// The 16 activations that go with this lane's weights of the tile at `k_begin`; zero beyond k
  /// and for columns that do not exist.
  __device__ void load(uint32_t group, uint32_t k_begin, uint32_t (&words)[8]) const {
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) words[i] = 0;
    if (!row[group] || k_begin >= k) return;
    const auto low = ptx::load_16_bytes_keep(row[group] + k_begin);
    const auto high = ptx::load_16_bytes_keep(row[group] + k_begin + 8);
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      words[i] = low.word[i];
      words[4 + i] = high.word[i];
    }
  }
};

/// What a compute warp needs to know of an item, besides its activations.
struct Item {
  uint32_t item_idx;
  TileRun run;
  uint32_t k;              ///< of the matrix, not of the run
  uint32_t num_columns;    ///< tokens or slots, at most kMaxExpertTokens
  uint32_t first_partial;  ///< its sums go to partials[first_partial + column]
};

/// sums += 16 rows x 64 k of weights times 8 columns of activations.
__device__ __forceinline__ void multiply_tile(float (&sums)[4], const WeightFragments& weights,
                                              const uint32_t (&words)[8]) {
#pragma unroll
  for (uint32_t f = 0; f < 4; ++f)
    ptx::mma_m16n8k16(sums, weights.a[f], {words[2 * f], words[2 * f + 1]});
}

/// Multiplies one item by the activations `row_of(column)`. Column groups are the accumulators that
/// the instance has room for.
template <uint32_t kColumnGroups, typename RowOf>
__device__ void multiply_item(ExpertShared& shared, const ItemTickets& tickets, const Item& item,
                              const RowOf& row_of) {
  const uint32_t lane_idx = threadIdx.x % 32, g = lane_idx / 4, q = lane_idx % 4;
  const uint32_t num_groups = (item.num_columns + kColumns - 1) / kColumns;
  ActivationRows<kColumnGroups> activations;
  float sums[kColumnGroups][4];
  activations.k = item.k;
#pragma unroll
  for (uint32_t group = 0; group < kColumnGroups; ++group) {
    const uint32_t column = group * kColumns + g;
    activations.row[group] = column < item.num_columns ? row_of(column) : nullptr;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) sums[group][i] = 0.0f;
  }
  // Activations are read one tile ahead, the first before any weight is there: nothing but their
  // producer is waited for.
  uint32_t words[8], next[8];
  uint32_t k_begin = item.run.first_tile * kCudaTileK + q * 16, rest = item.run.num_tiles;
  activations.load(0, k_begin, next);
  for (uint32_t stage = 0; stage < tickets.num_stages; ++stage) {
    const uint32_t ticket = tickets.ticket(item.item_idx, stage);
    const uint8_t* tile = shared.ring.wait(ticket);
    const uint8_t* end = tile + (rest < kStageTiles ? rest : kStageTiles) * kCudaTileBytes;
#pragma unroll 2  // the other set of activation registers, instead of copies
    for (; tile != end; tile += kCudaTileBytes, k_begin += kCudaTileK, --rest) {
#pragma unroll
      for (uint32_t i = 0; i < 8; ++i) words[i] = next[i];
      activations.load(0, k_begin + kCudaTileK, next);
      const WeightFragments weights = load_tile(tile, lane_idx);
      multiply_tile(sums[0], weights, words);
#pragma unroll
      for (uint32_t group = 1; group < kColumnGroups; ++group) {
        if (group >= num_groups) break;
        activations.load(group, k_begin, words);
        multiply_tile(sums[group], weights, words);
      }
    }
    shared.ring.release(ticket, lane_idx);
  }
  constexpr float kUnscale = 1u << kCudaScaleShift;
#pragma unroll
  for (uint32_t group = 0; group < kColumnGroups; ++group)
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t column = group * kColumns + 2 * q + i % 2;
      if (column < item.num_columns)
        shared.partials[item.first_partial + column][g + i / 2 * 8] = sums[group][i] * kUnscale;
    }
}

/// The same for any number of columns. Most items of a decode step have at most 8: their own
/// instance needs fewer registers and instructions.
template <typename RowOf>
__device__ void multiply_item(ExpertShared& shared, const ItemTickets& tickets, const Item& item,
                              const RowOf& row_of) {
  if (item.num_columns <= kColumns)
    multiply_item<1>(shared, tickets, item, row_of);
  else
    multiply_item<kMaxColumnGroups>(shared, tickets, item, row_of);
}

/// All compute warps meet: partial sums written before can be read after, and the other way round.
__device__ __forceinline__ void compute_barrier() {
  constexpr uint32_t kComputeBarrier = 1;  // 0 is that of the whole block
  ptx::named_barrier_sync(kComputeBarrier, kComputeWarps * 32);
}

}  // namespace mimo_rt::cuda
