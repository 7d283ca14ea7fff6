// The slots of the active experts, cut into tiles, as units of a task; and their activations,
// packed for the products of expert_gemm.cuh.
#pragma once

#include "cuda/device/tasks/weight_stream.cuh"
#include "cuda/expert_gemm_params.h"

namespace mimo_rt::cuda {

/// Up to kGroups groups of slots of one active expert.
struct SlotTile {
  uint32_t expert;
  uint32_t row_tile;               ///< of the weights
  uint32_t first_slot, num_slots;  ///< of the tile
  uint32_t num_groups;             ///< groups of 8 that it has
  uint32_t first_group;            ///< its place among the packed groups
  bool is_only_one;                ///< the expert has no other tile

  /// Bytes from the start of the packed activations to tile `k_tile` of group 0.
  __device__ uint64_t packed_begin(uint32_t num_k_tiles, uint32_t k_tile) const {
    return (uint64_t{first_group} * num_k_tiles + uint64_t{k_tile} * num_groups) * kSlotTileBytes;
  }
};

/// Walks through the tiles, those of an expert side by side, each with `num_row_tiles` of weights.
template <uint32_t kGroups>
class SlotTiles {
 public:
  template <typename Params>
  __device__ SlotTiles(const Params& p, uint32_t num_row_tiles)
      : route_(p.route), num_active_(*p.route.num_active), num_row_tiles_(num_row_tiles) {
    if (num_active_ > p.num_experts || p.route.slot_begin[num_active_] > p.max_slots)
      ptx::trap();  // a broken route; the host has checked sizes
  }
  /// Unit `unit`, not before the one asked for last. @return false: there are no more
  __device__ bool find(uint32_t unit, SlotTile& tile) {
    constexpr uint32_t kSlots = kGroups * kSlotGroup;
    for (; active_idx_ < num_active_; ++active_idx_) {
      const uint32_t begin = route_.slot_begin[active_idx_];
      const uint32_t num_slots = route_.slot_begin[active_idx_ + 1] - begin;
      const uint32_t num_tiles = (num_slots + kSlots - 1) / kSlots;
      const uint32_t local = unit - first_unit_;
      if (local < num_tiles * num_row_tiles_) {
        const uint32_t tile_idx = local % num_tiles, rest = num_slots - tile_idx * kSlots;
        tile.expert = route_.active_experts[active_idx_];
        tile.row_tile = local / num_tiles;
        tile.first_slot = begin + tile_idx * kSlots;
        tile.num_slots = rest < kSlots ? rest : kSlots;
        tile.num_groups = (tile.num_slots + kSlotGroup - 1) / kSlotGroup;
        tile.first_group = begin / kSlotGroup + active_idx_ + tile_idx * kGroups;
        tile.is_only_one = num_tiles == 1;
        return true;
      }
      first_unit_ += num_tiles * num_row_tiles_;
    }
    return false;
  }

 private:
  const RouteTable route_;
  const uint32_t num_active_, num_row_tiles_;
  uint32_t active_idx_ = 0, first_unit_ = 0;  ///< unit at which that expert begins
};

/// One warp: 8 slots x 64 k. Slots beyond the tile's and k beyond the row's are 0.
template <typename RowOf>
__device__ void pack_slot_group(uint8_t* packed, const SlotTile& tile, uint32_t group,
                                uint32_t k_tile, uint32_t k, const RowOf& row_of) {
  const uint32_t lane_idx = threadIdx.x % 32, s = lane_idx / 4, q = lane_idx % 4;
  const uint32_t num_k_tiles = (k + kCudaTileK - 1) / kCudaTileK;
  const uint32_t slot = group * kSlotGroup + s;
  const uint16_t* row = slot < tile.num_slots ? row_of(tile.first_slot + slot) : nullptr;
  uint32_t words[8] = {};
  if (row) load_activations(row, k_tile * kCudaTileK + q * 16, k, words);
  uint8_t* out = packed + tile.packed_begin(num_k_tiles, k_tile) + group * kSlotTileBytes +
                 s * (kSlotTileBytes / kSlotGroup);
#pragma unroll
  for (uint32_t chunk = 0; chunk < 8; ++chunk)
    *reinterpret_cast<uint32_t*>(out + (chunk ^ s) * 16 + q * 4) = words[chunk];
}

/// Compute warps: packs the activations `row_of(slot)` of all slots, in tiles of kGroups.
template <uint32_t kGroups, typename Params, typename RowOf>
__device__ void pack_slots(const Params& p, uint32_t k, UnitRange range, const RowOf& row_of) {
  const uint32_t num_k_tiles = (k + kCudaTileK - 1) / kCudaTileK;
  SlotTiles<kGroups> tiles(p, kGroups);  // a unit is one group
  SlotTile tile;
  for (uint32_t u = range.first; tiles.find(u, tile); u += range.stride) {
    if (tile.row_tile >= tile.num_groups) continue;
    for (uint32_t k_tile = threadIdx.x / 32; k_tile < num_k_tiles; k_tile += kComputeWarps)
      pack_slot_group(p.packed, tile, tile.row_tile, k_tile, k, row_of);
  }
}

}  // namespace mimo_rt::cuda
