// The part that both expert kernels share: items of MXFP4 tiles times activations.
#pragma once

#include "cuda/device/math/mxfp4.cuh"
#include "cuda/device/tasks/weight_stream.cuh"
#include "cuda/expert_mlp_params.h"

namespace mimo_rt::cuda {

struct Mxfp4Tiles {
  static constexpr uint32_t kTileBytes = kCudaTileBytes, kTileK = kCudaTileK, kStageTiles = 8;
};

struct ExpertShared {
  WeightRing ring;
  float partials[kMaxExpertSlots][kPartialStride];  ///< sums of items, 16 rows each
  // expert_down: the slots of each token, ascending; those of token t begin at token_begin[t].
  uint16_t token_slots[kMaxExpertSlots];
  float token_weights[kMaxExpertSlots];
  uint16_t token_begin[kMaxExpertTokens + 1];
};

/// What a compute warp needs to know of an item, besides its activations.
struct Item {
  uint32_t item_idx;
  TileRun run;
  uint32_t k;              ///< of the matrix, not of the run
  uint32_t num_columns;    ///< tokens or slots, at most kMaxExpertTokens
  uint32_t first_partial;  ///< its sums go to partials[first_partial + column]
};

/// How tiles are multiplied: by BF16 activations.
struct Bf16Activations {
  using Element = uint16_t;
  using Fragments = WeightFragments;
  static constexpr uint32_t kWords = 8;  ///< a lane's, of 64 k

  __device__ static const Element* row(const ExpertGateUpParams& p, uint32_t i) {
    return p.x.row(i);
  }
  __device__ static const Element* row(const ExpertDownParams& p, uint32_t i) {
    return p.act.row(i);
  }
  __device__ static void load(const Element* row, uint32_t k_begin, uint32_t k,
                              uint32_t (&words)[kWords]) {
    load_activations(row, k_begin, k, words);
  }
  __device__ static Fragments load_weights(const uint8_t* tile, uint32_t lane_idx) {
    return load_tile(tile, lane_idx);
  }
  __device__ static void multiply(float (&sums)[4], const Fragments& weights,
                                  const uint32_t (&words)[kWords]) {
    multiply_tile(sums, weights, words);
  }
  /// What sums are multiplied by.
  template <typename Params>
  __device__ static float scale(const Params& /*p*/, uint32_t /*i*/) {
    return 1u << kCudaScaleShift;
  }
};

/// Multiplies one item by the activations of row `index_of(column)`. Column groups are the
/// accumulators that the instance has room for.
template <typename Activations, uint32_t kColumnGroups, typename Params, typename IndexOf>
__device__ void multiply_item(ExpertShared& shared, const Params& p, const ItemTickets& tickets,
                              const Item& item, const IndexOf& index_of) {
  const uint32_t lane_idx = threadIdx.x % 32, g = lane_idx / 4, q = lane_idx % 4;
  const uint32_t num_groups = (item.num_columns + kColumns - 1) / kColumns;
  const auto* const rows = Activations::row(p, 0);
  uint32_t row[kColumnGroups];  // of columns g, 8 + g, …: where it begins; beyond the columns that of the first
  float sums[kColumnGroups][4];
#pragma unroll
  for (uint32_t group = 0; group < kColumnGroups; ++group) {
    const uint32_t column = group * kColumns + g;
    row[group] = static_cast<uint32_t>(Activations::row(p, index_of(column < item.num_columns ? column : 0)) - rows);
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) sums[group][i] = 0.0f;
  }
  // Activations are read one tile ahead, the first before any weight is there: nothing but their
  // producer is waited for.
  uint32_t words[Activations::kWords], next[Activations::kWords];
  uint32_t k_begin = item.run.first_tile * kCudaTileK + q * 16, rest = item.run.num_tiles;
  Activations::load(rows + row[0], k_begin, item.k, next);
  for (uint32_t stage = 0; stage < tickets.num_stages; ++stage) {
    const uint32_t ticket = tickets.ticket(item.item_idx, stage);
    const uint8_t* tile = shared.ring.wait(ticket);
    const uint8_t* end = tile + tiles_of_stage<Mxfp4Tiles>(rest) * kCudaTileBytes;
#pragma unroll(kColumnGroups == 1 ? 2 : 1)  // the other set of activation registers, instead of copies
    for (; tile != end; tile += kCudaTileBytes, k_begin += kCudaTileK, --rest) {
#pragma unroll
      for (uint32_t i = 0; i < Activations::kWords; ++i) words[i] = next[i];
      Activations::load(rows + row[0], k_begin + kCudaTileK, item.k, next);
      const typename Activations::Fragments weights = Activations::load_weights(tile, lane_idx);
      Activations::multiply(sums[0], weights, words);
#pragma unroll
      for (uint32_t group = 1; group < kColumnGroups; ++group) {
        if (group % 2 == 0 && group >= num_groups) break;  // each would take a predicate
        Activations::load(rows + row[group], k_begin, item.k, words);
        Activations::multiply(sums[group], weights, words);
      }
    }
    shared.ring.release(ticket, lane_idx);
  }
#pragma unroll
  for (uint32_t group = 0; group < kColumnGroups; ++group)
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t column = group * kColumns + 2 * q + i % 2;
      if (column < item.num_columns)
        shared.partials[item.first_partial + column][g + i / 2 * 8] =
            sums[group][i] * Activations::scale(p, index_of(column));
    }
}

/// The same for any number of columns. Most items of a decode step have at most 8: their own
/// instance needs fewer registers and instructions.
template <typename Activations, typename Params, typename IndexOf>
__device__ void multiply_any_item(ExpertShared& shared, const Params& p, const ItemTickets& tickets,
                                  const Item& item, const IndexOf& index_of) {
  if (item.num_columns <= kColumns)
    multiply_item<Activations, 1>(shared, p, tickets, item, index_of);
  else
    multiply_item<Activations, kMaxColumnGroups>(shared, p, tickets, item, index_of);
}

}  // namespace mimo_rt::cuda
