// The last part of down for many tokens: the slots of each token, in the order of expert_mlp.cuh.
// A unit is one token.
#pragma once

#include "cuda/device/math/block_sums.cuh"
#include "cuda/device/tasks/slot_tiles.cuh"

namespace mimo_rt::cuda {

struct CombineShared {
  uint32_t slots[kMaxGemmExperts];  ///< of the token, experts ascending
  float weights[kMaxGemmExperts];
  uint32_t num_slots;
};

/// The slot of `token` among those of an active expert, which are ascending; ~0: it has none.
__device__ inline uint32_t slot_of_token(const RouteTable& route, uint32_t active_idx,
                                         uint32_t token) {
  uint32_t begin = route.slot_begin[active_idx];
  const uint32_t limit = route.slot_begin[active_idx + 1];
  for (uint32_t end = limit; begin < end;) {
    const uint32_t middle = (begin + end) / 2;
    if (route.slot_token[middle] < token)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin < limit && route.slot_token[begin] == token ? begin : ~0u;
}

/// One warp: lane i looks at neighbouring experts.
__device__ inline void list_slots(CombineShared& shared, const RouteTable& route, uint32_t token) {
  const uint32_t num_active = *route.num_active, per_lane = (num_active + 31) / 32;
  const uint32_t first = threadIdx.x % 32 * per_lane;
  const uint32_t end = first + per_lane < num_active ? first + per_lane : num_active;
  uint32_t count = 0;
  for (uint32_t i = first; i < end; ++i) count += slot_of_token(route, i, token) != ~0u;
  uint32_t place = sum_below(count);
  if (threadIdx.x % 32 == 31) shared.num_slots = place + count;
  for (uint32_t i = first; i < end; ++i) {
    const uint32_t slot = slot_of_token(route, i, token);
    if (slot == ~0u) continue;
    shared.slots[place] = slot;
    shared.weights[place++] = route.slot_weight[slot];
  }
}

/// This thread's four neighbouring columns of a token.
__device__ inline void combine_columns(const CombineShared& shared, const ExpertDownGemmParams& p,
                                       uint32_t token, uint32_t column) {
  float sums[4] = {};
  for (uint32_t segment = 0; segment < p.num_segments; ++segment) {
    const float* rows = p.partials + uint64_t{segment} * p.max_slots * p.hidden_size + column;
    float segment_sums[4] = {};
#pragma unroll 4
    for (uint32_t i = 0; i < shared.num_slots; ++i) {
      const ptx::Words4 row =
          ptx::load_16_bytes_once(rows + uint64_t{shared.slots[i]} * p.hidden_size);
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j)
        segment_sums[j] = fmaf(shared.weights[i], ptx::as_float(row.word[j]), segment_sums[j]);
    }
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) sums[j] += segment_sums[j];
  }
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j) {
    if (p.residual.data) {
      uint16_t& x = p.residual.row(token)[column + j];
      x = static_cast<uint16_t>(ptx::to_bf16x2(ptx::low_bf16(x) + sums[j], 0.0f));
    } else {
      p.sums.row(token)[column + j] = sums[j];
    }
  }
}

/// All compute warps.
__device__ inline void combine_slots(CombineShared& shared, const ExpertDownGemmParams& p,
                                     UnitRange range) {
  for (uint32_t token = range.first; token < p.num_tokens; token += range.stride) {
    if (threadIdx.x < 32) list_slots(shared, p.route, token);
    compute_barrier();
    for (uint32_t column = 4 * threadIdx.x; column < p.hidden_size;
         column += 4 * kComputeWarps * 32)
      combine_columns(shared, p, token, column);
    compute_barrier();  // before the next token's list
  }
}

}  // namespace mimo_rt::cuda
