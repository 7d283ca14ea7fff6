// The part that all kernels with weights share: a stream of weight tiles goes through the ring,
// compute warps multiply it by activations, partial sums meet in shared memory.
//
// A *unit* is what a block does at a time; it is cut into *items*. An item is one row group over
// one segment of K, and belongs to one compute warp (item % kComputeWarps), which runs through its
// tiles in ascending k with one FP32 accumulator per output: the order of a sum depends on nothing
// else. Loader and compute warps walk the same items and so agree on the tickets of the ring.
//
// `Tiles` says how weights are packed: kTileBytes, kTileK, and kStageTiles of them per stage.
#pragma once

#include "cuda/device/sync/ring.cuh"
#include "cuda/kernel_params.h"

namespace mimo_rt::cuda {

using WeightRing = Ring<kNumStages, kStageBytes, 1, true>;

/// Which units of a task a block does: first, first + stride, … below `end` and below all there are.
struct UnitRange {
  uint32_t first, stride;
  uint32_t end = 0xffffffffu;

  __device__ uint32_t limit(uint32_t num_units) const { return end < num_units ? end : num_units; }
};

// Floats per row of 16 partial sums: with 20 the stores of a fragment touch all banks once.
inline constexpr uint32_t kPartialStride = 20;

inline constexpr uint32_t kColumns = 8;  // tokens of one product
inline constexpr uint32_t kMaxColumnGroups = kMaxTokens / kColumns;

/// Weights of one item.
struct TileRun {
  const uint8_t* tiles;
  uint32_t num_tiles;
  uint32_t first_tile;  ///< along k
};

/// Segment `segment` of `num_segments` of a row group.
template <typename Tiles>
__device__ __forceinline__ TileRun segment_run(const uint8_t* row_group, uint32_t num_tiles,
                                               uint32_t segment, uint32_t num_segments) {
  const uint32_t begin = num_tiles * segment / num_segments;
  const uint32_t end = num_tiles * (segment + 1) / num_segments;
  return {row_group + begin * Tiles::kTileBytes, end - begin, begin};
}

/// Stages that the longest segment takes; the shorter ones take as many.
template <typename Tiles>
__device__ __forceinline__ uint32_t stages_per_item(uint32_t num_tiles, uint32_t num_segments) {
  const uint32_t longest = (num_tiles + num_segments - 1) / num_segments;
  return (longest + Tiles::kStageTiles - 1) / Tiles::kStageTiles;
}

/// Tiles in the next stage when `rest` tiles of the item are left.
template <typename Tiles>
__device__ __forceinline__ uint32_t tiles_of_stage(uint32_t rest) {
  return rest < Tiles::kStageTiles ? rest : Tiles::kStageTiles;
}

/// The items of a unit and their tickets. Eight items (one per compute warp) are in the ring side
/// by side: stage 0 of each, then stage 1 of each, and so on. With several stages the items are a
/// multiple of eight, so that a ticket and the next one in its stage of the ring have one owner:
/// Ring::wait needs that.
struct ItemTickets {
  uint32_t first_ticket;
  uint32_t num_items;
  uint32_t num_stages;  ///< per item

  __device__ uint32_t ticket(uint32_t item, uint32_t stage) const {
    const uint32_t lane = item % kComputeWarps, group_begin = item - lane;
    return first_ticket + group_begin * num_stages + stage * kComputeWarps + lane;
  }
  __device__ uint32_t end() const { return first_ticket + num_items * num_stages; }
};

/// Loader warp: brings all items of a unit. `run_of(item)` gives the tiles. Lane i handles the
/// items of compute warp i, so that eight copies are prepared at a time.
template <typename Tiles, typename RunOf>
__device__ void load_items(WeightRing& ring, const ItemTickets& tickets, uint64_t l2_policy,
                           const RunOf& run_of) {
  static_assert(Tiles::kTileBytes * Tiles::kStageTiles <= kStageBytes);
  const uint32_t lane_idx = threadIdx.x % 32;
  for (uint32_t begin = 0; begin < tickets.num_items; begin += kComputeWarps) {
    const uint32_t item = begin + lane_idx;
    if (lane_idx < kComputeWarps && item < tickets.num_items) {
      const TileRun run = run_of(item);
      for (uint32_t stage = 0; stage < tickets.num_stages; ++stage) {
        const uint32_t done = stage * Tiles::kStageTiles;
        const uint32_t rest = run.num_tiles > done ? run.num_tiles - done : 0;
        const uint32_t num_tiles = tiles_of_stage<Tiles>(rest);
        ring.fill(tickets.ticket(item, stage), run.tiles + done * Tiles::kTileBytes,
                  num_tiles * Tiles::kTileBytes, l2_policy);
      }
    }
    ptx::sync_warp();
  }
}

/// The 16 activations that go with one lane's weights of 64 k: its column's row from `k_begin` on.
/// Zero beyond `k`. `kIsShared`: the row lies in shared memory.
template <bool kIsShared = false>
__device__ __forceinline__ void load_activations(const uint16_t* row, uint32_t k_begin, uint32_t k,
                                                 uint32_t (&words)[8]) {
#pragma unroll
  for (uint32_t i = 0; i < 8; ++i) words[i] = 0;
  if (k_begin >= k) return;
  const auto load = [](const uint16_t* at) {
    if constexpr (kIsShared) return *reinterpret_cast<const ptx::Words4*>(at);
    return ptx::load_16_bytes_keep(at);
  };
  const ptx::Words4 low = load(row + k_begin), high = load(row + k_begin + 8);
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    words[i] = low.word[i];
    words[4 + i] = high.word[i];
  }
}

/// Compute warp: gives back its tickets from `first` on, every eighth, unread.
__device__ __forceinline__ void give_back(WeightRing& ring, uint32_t first, uint32_t end) {
  for (uint32_t t = first; static_cast<int32_t>(t - end) < 0; t += kComputeWarps) {
    (void)ring.wait(t);
    ring.release(t, threadIdx.x % 32);
  }
}

/// All compute warps meet: partial sums written before can be read after, and the other way round.
__device__ __forceinline__ void compute_barrier() {
  constexpr uint32_t kComputeBarrier = 1;  // 0 is that of the whole block
  ptx::named_barrier_sync(kComputeBarrier, kComputeWarps * 32);
}

/// Sets up the ring, then runs one role per warp: the last one loads, the others compute.
template <typename Shared, typename Params, typename Load, typename Compute>
__device__ __forceinline__ void run_roles(const Params& params, Load load, Compute compute) {
  auto& shared = *reinterpret_cast<Shared*>(ptx::dynamic_shared_memory());
  if (threadIdx.x == 0) shared.ring.init();
  ptx::named_barrier_sync(0, kBlockThreads);
  const UnitRange range{blockIdx.x, gridDim.x};
  uint32_t ticket = 0;
  if (threadIdx.x / 32 == kComputeWarps)
    load(shared, params, range, ticket);
  else
    compute(shared, params, range, ticket);
}

}  // namespace mimo_rt::cuda
