// The expert matrices for many tokens. A unit is 128 rows of one expert (8 row groups, one per
// compute warp) times up to 128 of its slots, over all of K. Weights come as they are packed for
// expert_mlp.cuh and go to registers through the same extractor; they are the A operand, so nothing
// is written back to shared memory, and with wgmma a tile is unpacked while the one before it is
// multiplied. Activations come packed (slot_tiles.cuh) and are the B operand.
//
// Order of the sums: that of expert_mlp.cuh. It takes two sets of accumulators (of the segment, of
// all of K), which is why a warp group has 64 rows and not 128. The compute warps share nothing but
// the two rings.
#pragma once

#include <type_traits>

#include "cuda/device/math/group_products.cuh"
#include "cuda/device/math/mxfp4.cuh"
#include "cuda/device/math/silu.cuh"
#include "cuda/device/tasks/slot_tiles.cuh"

namespace mimo_rt::cuda {

inline constexpr uint32_t kWeightStageTiles = 2;  ///< along k, of each of the 8 row groups
inline constexpr uint32_t kRunBytes = kWeightStageTiles * kCudaTileBytes;

struct ExpertGemmShared {
  alignas(1024) Ring<4, kMaxSlotGroups * kSlotTileBytes, kGemmWarps> slots;
  Ring<16, kGemmWarps * kRunBytes, kGemmWarps> weights;
};

/// Tickets of both rings at the start of a unit.
struct GemmTickets {
  uint32_t weights = 0, slots = 0;
};

/// Slot groups that the products of a tile compute: the next power of two.
__device__ inline uint32_t padded_groups(uint32_t num_groups) {
  uint32_t padded = 1;
  while (padded < num_groups) padded *= 2;
  return padded;
}

/// One matrix of every expert, as the kernels see it.
struct GemmMatrix {
  const uint8_t* tiles;
  uint32_t num_row_groups, num_k_tiles;

  __device__ uint32_t num_row_tiles() const {
    return (num_row_groups + kGemmWarps - 1) / kGemmWarps;
  }
  __device__ const uint8_t* row_group(uint32_t expert, uint32_t group) const {
    return tiles + (uint64_t{expert} * num_row_groups + group) * num_k_tiles * kCudaTileBytes;
  }
};

/// Packs the activations of all slots: of gate and up, and of down.
template <typename Products>
__device__ void pack_x(const ExpertGateUpGemmParams& p) {
  pack_slots<Products::kSlotGroups>(
      p, p.hidden_size, {blockIdx.x, gridDim.x},
      [&](uint32_t slot) { return p.x.row(p.route.slot_token[slot]); });
}
template <typename Products>
__device__ void pack_act(const ExpertDownGemmParams& p) {
  pack_slots<Products::kSlotGroups>(p, p.width, {blockIdx.x, gridDim.x},
                                    [&](uint32_t slot) { return p.act.row(slot); });
}

/// Loader warp.
template <typename Products, typename Params>
__device__ void load_gemm(ExpertGemmShared& shared, const Params& p, const GemmMatrix& matrix,
                          UnitRange range) {
  const uint32_t lane_idx = threadIdx.x % 32;
  const uint64_t once = ptx::evict_first_policy(), often = ptx::evict_last_policy();
  SlotTiles<Products::kSlotGroups> tiles(p, matrix.num_row_tiles());
  GemmTickets tickets;
  SlotTile tile;
  for (uint32_t u = range.first; tiles.find(u, tile); u += range.stride) {
    const uint32_t first_row_group = tile.row_tile * kGemmWarps;
    const uint32_t rest = matrix.num_row_groups - first_row_group;
    const uint32_t num_runs = rest < kGemmWarps ? rest : kGemmWarps;
    const uint32_t padded = padded_groups(tile.num_groups), stage_tiles = kMaxSlotGroups / padded;
    const uint32_t slot_bytes = tile.num_groups * kSlotTileBytes;
    for (uint32_t k_tile = 0; k_tile < matrix.num_k_tiles; ++k_tile) {
      const uint32_t left = matrix.num_k_tiles - k_tile;
      if (k_tile % stage_tiles == 0) {
        const uint32_t num_tiles = left < stage_tiles ? left : stage_tiles;
        if (lane_idx == 0) shared.slots.open(tickets.slots, num_tiles * slot_bytes);
        ptx::sync_warp();
        if (lane_idx < num_tiles)
          shared.slots.copy(tickets.slots, lane_idx * padded * kSlotTileBytes,
                            p.packed + tile.packed_begin(matrix.num_k_tiles, k_tile + lane_idx),
                            slot_bytes, often);
        ++tickets.slots;
      }
      if (k_tile % kWeightStageTiles == 0) {
        const uint32_t num_tiles = left < kWeightStageTiles ? left : kWeightStageTiles;
        const uint32_t bytes = num_tiles * kCudaTileBytes;
        if (lane_idx == 0) shared.weights.open(tickets.weights, num_runs * bytes);
        ptx::sync_warp();
        if (lane_idx < num_runs)
          shared.weights.copy(tickets.weights, lane_idx * kRunBytes,
                              matrix.row_group(tile.expert, first_row_group + lane_idx) +
                                  k_tile * kCudaTileBytes,
                              bytes, tile.is_only_one ? once : often);
        ++tickets.weights;
      }
    }
  }
}

/// One compute warp's row group of a unit. `kGroups`: padded.
template <typename Products, uint32_t kGroups>
struct UnitProduct {
  static constexpr uint32_t kStageTiles = kMaxSlotGroups / kGroups;

  ExpertGemmShared& shared;
  GemmTickets tickets;  ///< of the unit's first stages
  uint32_t num_k_tiles;
  bool has_rows;
  float sums[kGroups][4];

  /// Begins the product of tile `k_tile`; then the one before it is complete.
  __device__ void step(uint32_t k_tile, WeightFragments& weights) {
    const uint32_t warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
    const uint32_t place = k_tile % kWeightStageTiles;
    const uint32_t weight_ticket = tickets.weights + k_tile / kWeightStageTiles;
    const uint8_t* run = shared.weights.wait(weight_ticket) + warp_idx * kRunBytes;
    if (has_rows) weights = load_tile(run + place * kCudaTileBytes, lane_idx);
    if (place == kWeightStageTiles - 1 || k_tile == num_k_tiles - 1)
      shared.weights.release(weight_ticket, lane_idx);
    const uint32_t slot_ticket = tickets.slots + k_tile / kStageTiles;
    const uint8_t* stage = shared.slots.wait(slot_ticket);
    Products::multiply(sums, weights, stage + k_tile % kStageTiles * kGroups * kSlotTileBytes);
    Products::wait_for_others();
    if (k_tile % kStageTiles == 0 && k_tile != 0) shared.slots.release(slot_ticket - 1, lane_idx);
  }

  /// All of K; `end_segment(segment, sums)` after each segment.
  template <typename EndSegment>
  __device__ void run(uint32_t num_segments, const EndSegment& end_segment) {
    WeightFragments even{}, odd{};
    for (uint32_t segment = 0; segment < num_segments; ++segment) {
#pragma unroll
      for (uint32_t group = 0; group < kGroups; ++group)
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) sums[group][i] = 0.0f;
      uint32_t k_tile = num_k_tiles * segment / num_segments;
      const uint32_t end = num_k_tiles * (segment + 1) / num_segments;
      for (; k_tile < end; ++k_tile) {
        step(k_tile, even);
        if constexpr (Products::kIsAsync)  // the other registers: these are still read
          if (++k_tile < end) step(k_tile, odd);
      }
      Products::wait_for_all(sums);
      constexpr float kUnscale = 1u << kCudaScaleShift;
#pragma unroll
      for (uint32_t group = 0; group < kGroups; ++group)
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) sums[group][i] *= kUnscale;
      end_segment(segment, sums);
    }
    shared.slots.release(tickets.slots + (num_k_tiles - 1) / kStageTiles, threadIdx.x % 32);
  }
};

/// act = silu(gate) * up: a row group has 8 rows of gate, then 8 of up.
struct GateUpGemm {
  using Params = ExpertGateUpGemmParams;
  __device__ static GemmMatrix matrix(const Params& p) {
    return {p.tiles, p.width / kCudaGateUpRows, (p.hidden_size + kCudaTileK - 1) / kCudaTileK};
  }

  template <typename Product>
  __device__ static void run(const Params& p, const SlotTile& tile, Product& product) {
    constexpr uint32_t kGroups = sizeof(product.sums) / sizeof(product.sums[0]);
    float totals[kGroups][4] = {};
    product.run(kGateUpSegments, [&](uint32_t /*segment*/, const float (&sums)[kGroups][4]) {
#pragma unroll
      for (uint32_t group = 0; group < kGroups; ++group)
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) totals[group][i] += sums[group][i];
    });
    if (!product.has_rows) return;
    const uint32_t lane_idx = threadIdx.x % 32;
    const uint32_t row_group = tile.row_tile * kGemmWarps + threadIdx.x / 32;
    const uint32_t column = row_group * kCudaGateUpRows + lane_idx / 4;
#pragma unroll
    for (uint32_t group = 0; group < kGroups; ++group)
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t slot = group * kSlotGroup + lane_idx % 4 * 2 + i;
        if (slot < tile.num_slots)
          p.act.row(tile.first_slot + slot)[column] = static_cast<uint16_t>(
              ptx::to_bf16x2(silu(totals[group][i]) * totals[group][2 + i], 0.0f));
      }
  }
};

/// Sums of each slot and segment; combine_slots adds them up.
struct DownGemm {
  using Params = ExpertDownGemmParams;
  __device__ static GemmMatrix matrix(const Params& p) {
    return {p.tiles, p.hidden_size / kCudaTileRows, (p.width + kCudaTileK - 1) / kCudaTileK};
  }

  template <typename Product>
  __device__ static void run(const Params& p, const SlotTile& tile, Product& product) {
    constexpr uint32_t kGroups = sizeof(product.sums) / sizeof(product.sums[0]);
    const uint32_t lane_idx = threadIdx.x % 32;
    const uint32_t row_group = tile.row_tile * kGemmWarps + threadIdx.x / 32;
    const uint32_t column = row_group * kCudaTileRows + lane_idx / 4;
    product.run(p.num_segments, [&](uint32_t segment, const float (&sums)[kGroups][4]) {
      if (!product.has_rows) return;
      float* rows =
          p.partials + (uint64_t{segment} * p.max_slots + tile.first_slot) * p.hidden_size;
#pragma unroll
      for (uint32_t group = 0; group < kGroups; ++group)
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
          const uint32_t slot = group * kSlotGroup + lane_idx % 4 * 2 + i % 2;
          if (slot < tile.num_slots)
            rows[uint64_t{slot} * p.hidden_size + column + i / 2 * 8] = sums[group][i];
        }
    });
  }
};

/// Compute warps.
template <typename Gemm, typename Products>
__device__ void compute_gemm(ExpertGemmShared& shared, const typename Gemm::Params& p,
                             UnitRange range) {
  const GemmMatrix matrix = Gemm::matrix(p);
  SlotTiles<Products::kSlotGroups> tiles(p, matrix.num_row_tiles());
  GemmTickets tickets;
  SlotTile tile;
  for (uint32_t u = range.first; tiles.find(u, tile); u += range.stride) {
    const bool has_rows = tile.row_tile * kGemmWarps + threadIdx.x / 32 < matrix.num_row_groups;
    const auto multiply = [&]<uint32_t kGroups>(std::integral_constant<uint32_t, kGroups>) {
      UnitProduct<Products, kGroups> product{shared, tickets, matrix.num_k_tiles, has_rows, {}};
      Gemm::run(p, tile, product);
    };
    const uint32_t padded = padded_groups(tile.num_groups);
    if (padded == 1) multiply(std::integral_constant<uint32_t, 1>{});
    if (padded == 2) multiply(std::integral_constant<uint32_t, 2>{});
    if (padded == 4) multiply(std::integral_constant<uint32_t, 4>{});
    if (padded == 8) multiply(std::integral_constant<uint32_t, 8>{});
    if constexpr (Products::kSlotGroups == 16)
      if (padded == 16) multiply(std::integral_constant<uint32_t, 16>{});
    const uint32_t stage_tiles = kMaxSlotGroups / padded;
    tickets.weights += (matrix.num_k_tiles + kWeightStageTiles - 1) / kWeightStageTiles;
    tickets.slots += (matrix.num_k_tiles + stage_tiles - 1) / stage_tiles;
  }
}

/// Sets up the rings, then runs one role per warp: 0 .. 7 compute, warp 8 loads.
template <typename Gemm, typename Products>
__device__ __forceinline__ void run_gemm(const typename Gemm::Params& params) {
  auto& shared = *reinterpret_cast<ExpertGemmShared*>(ptx::dynamic_shared_memory());
  if (threadIdx.x == 0) {
    shared.slots.init();
    shared.weights.init();
  }
  ptx::named_barrier_sync(0, kGemmThreads);
  const UnitRange range{blockIdx.x, gridDim.x};
  if (threadIdx.x / 32 < kGemmWarps) {
    ptx::raise_registers<kGemmComputeRegisters>();
    compute_gemm<Gemm, Products>(shared, params, range);
  } else {
    ptx::lower_registers<kGemmLoadRegisters>();
    if (threadIdx.x / 32 == kGemmWarps)
      load_gemm<Products>(shared, params, Gemm::matrix(params), range);
  }
}

}  // namespace mimo_rt::cuda
