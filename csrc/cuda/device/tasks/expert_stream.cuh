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

/// Multiplies one item by the activations `row_of(column)`. Column groups are the accumulators that
/// the instance has room for.
template <uint32_t kColumnGroups, typename RowOf>
__device__ void multiply_item(ExpertShared& shared, const ItemTickets& tickets, const Item& item,
                              const RowOf& row_of) {
  const uint32_t lane_idx = threadIdx.x % 32, g = lane_idx / 4, q = lane_idx % 4;
  const uint32_t num_groups = (item.num_columns + kColumns - 1) / kColumns;
  const uint16_t* row[kColumnGroups];  // of columns g, 8 + g, …; nullptr: no such column
  float sums[kColumnGroups][4];
#pragma unroll
  for (uint32_t group = 0; group < kColumnGroups; ++group) {
    const uint32_t column = group * kColumns + g;
    row[group] = column < item.num_columns ? row_of(column) : nullptr;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) sums[group][i] = 0.0f;
  }
  // Activations are read one tile ahead, the first before any weight is there: nothing but their
  // producer is waited for.
  uint32_t words[8], next[8];
  uint32_t k_begin = item.run.first_tile * kCudaTileK + q * 16, rest = item.run.num_tiles;
  load_activations(row[0], k_begin, item.k, next);
  for (uint32_t stage = 0; stage < tickets.num_stages; ++stage) {
    const uint32_t ticket = tickets.ticket(item.item_idx, stage);
    const uint8_t* tile = shared.ring.wait(ticket);
    const uint8_t* end = tile + tiles_of_stage<Mxfp4Tiles>(rest) * kCudaTileBytes;
#pragma unroll 2  // the other set of activation registers, instead of copies
    for (; tile != end; tile += kCudaTileBytes, k_begin += kCudaTileK, --rest) {
#pragma unroll
      for (uint32_t i = 0; i < 8; ++i) words[i] = next[i];
      load_activations(row[0], k_begin + kCudaTileK, item.k, next);
      const WeightFragments weights = load_tile(tile, lane_idx);
      multiply_tile(sums[0], weights, words);
#pragma unroll
      for (uint32_t group = 1; group < kColumnGroups; ++group) {
        if (group >= num_groups) break;
        load_activations(row[group], k_begin, item.k, words);
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
/// instance needs fewer registers and instructions. `kTokensOfCall`: there are no more columns.
template <uint32_t kTokensOfCall, typename RowOf>
__device__ void multiply_any_item(ExpertShared& shared, const ItemTickets& tickets,
                                  const Item& item, const RowOf& row_of) {
  if constexpr (kTokensOfCall <= kColumns)
    multiply_item<1>(shared, tickets, item, row_of);
  else if (item.num_columns <= kColumns)
    multiply_item<1>(shared, tickets, item, row_of);
  else
    multiply_item<kMaxColumnGroups>(shared, tickets, item, row_of);
}

}  // namespace mimo_rt::cuda
