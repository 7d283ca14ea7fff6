// The choice of the experts and the table that the expert tasks read: one block. One warp per token
// chooses; then the block counts, orders and fills in, all in the order of experts and tokens.
//
// The chosen are found one after the other, each by the largest score of the lanes and then the lowest of those that
// have it: the order of the comparisons changes nothing. Sums of weights run over the chosen, ascending.
#pragma once

#include "cuda/device/math/best.cuh"
#include "cuda/device/math/block_sums.cuh"
#include "cuda/router_params.h"

namespace mimo_rt::cuda {

struct SelectShared {
  // Of the chosen of each token, ascending: entry token * experts_per_token + place.
  uint16_t experts[kMaxExpertSlots];
  float weights[kMaxExpertSlots];
  uint16_t chosen[kMaxTokens][32];   ///< bits of each token's experts, by the lane that has them
  uint16_t num_slots[kMaxExperts];   ///< of each expert
  uint16_t slot_begin[kMaxExperts];  ///< slots of the experts before it
  uint16_t rank[kMaxExperts];        ///< active experts before it
};

inline constexpr uint32_t kLaneExperts = kMaxExperts / 32;
static_assert(kLaneExperts <= 16, "a lane's experts are the bits of 16");

/// Integers in the order of numbers, -0 as 0.
__device__ __forceinline__ uint32_t order_of(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/// The experts of one token. Lane i looks after `per_lane` neighbours.
struct Choice {
  float sigma[kLaneExperts], score[kLaneExperts];
  uint32_t open = 0, chosen = 0;  ///< bit i: expert first + i
  uint32_t first, per_lane;

  __device__ Choice(const SelectExpertsParams& p, uint32_t token) {
    per_lane = (p.num_experts + 31) / 32;
    first = threadIdx.x % 32 * per_lane;
    const uint32_t end = first + per_lane < p.num_experts ? first + per_lane : p.num_experts;
    if (first < end) open = (1u << (end - first)) - 1;
    load(p.logits.row(token), p.num_experts, sigma);
    if (p.bias)
      load(p.bias, p.num_experts, score);
    else
#pragma unroll
      for (uint32_t i = 0; i < kLaneExperts; ++i) score[i] = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < kLaneExperts; ++i) {
      sigma[i] = 1.0f / (1.0f + expf(-sigma[i]));
      score[i] += sigma[i];
      if (!(score[i] == score[i])) score[i] = ptx::as_float(0xff800000u);  // NaN: -infinity
    }
  }
  /// This lane's of all experts; something where it has none. Without branches: one trip to memory for all.
  __device__ void load(const float* of_all, uint32_t num_experts, float (&out)[kLaneExperts]) const {
#pragma unroll
    for (uint32_t i = 0; i < kLaneExperts; ++i) out[i] = of_all[first + i < num_experts ? first + i : num_experts - 1];
  }
  __device__ void choose_next() {
    Best best;
#pragma unroll
    for (uint32_t i = 0; i < kLaneExperts; ++i)
      if (open >> i & 1) best.take(score[i], first + i);
    const uint32_t order = order_of(best.value), largest = ptx::reduce_max(order);
    const uint32_t expert = ptx::reduce_min(order == largest ? best.column : 0xffffffffu);
    const uint32_t place = expert - first;  // of another lane: beyond per_lane
    if (place >= per_lane) return;
    open &= ~(1u << place);
    chosen |= 1u << place;
  }
  __device__ void store(SelectShared& shared, uint32_t token, uint32_t first_entry) const {
    shared.chosen[token][threadIdx.x % 32] = static_cast<uint16_t>(chosen);
    uint32_t count = 0;
#pragma unroll
    for (uint32_t i = 0; i < kLaneExperts; ++i) count += chosen >> i & 1;
    uint32_t entry = first_entry + sum_below(count);
#pragma unroll
    for (uint32_t i = 0; i < kLaneExperts; ++i) {
      if (!(chosen >> i & 1)) continue;
      shared.experts[entry] = static_cast<uint16_t>(first + i);
      shared.weights[entry++] = sigma[i];
    }
  }
};

/// One warp: chooses for a token and turns the sigma of the chosen into weights.
__device__ inline void choose_experts(SelectShared& shared, const SelectExpertsParams& p,
                                      uint32_t token) {
  const uint32_t lane_idx = threadIdx.x % 32, first_entry = token * p.experts_per_token;
  Choice choice(p, token);
  for (uint32_t i = 0; i < p.experts_per_token; ++i) choice.choose_next();
  choice.store(shared, token, first_entry);
  ptx::sync_warp();
  float sum = 1e-20f;
  for (uint32_t i = 0; i < p.experts_per_token; ++i) sum += shared.weights[first_entry + i];
  ptx::sync_warp();  // all have read
  if (lane_idx >= p.experts_per_token) return;
  float& weight = shared.weights[first_entry + lane_idx];
  weight = (p.norm_topk_prob ? weight / sum : weight) * p.routed_scaling_factor;
}

/// visit(token) for the tokens that have chosen `expert`, ascending.
template <typename Visit>
__device__ void for_each_token(const SelectShared& shared, const SelectExpertsParams& p,
                               uint32_t expert, const Visit& visit) {
  const uint32_t per_lane = (p.num_experts + 31) / 32;
  for (uint32_t token = 0; token < p.num_tokens; ++token)
    if (shared.chosen[token][expert / per_lane] >> expert % per_lane & 1) visit(token);
}

/// One warp: which active expert and which slot each expert begins with.
__device__ inline void order_experts(SelectShared& shared, const SelectExpertsParams& p) {
  const uint32_t per_lane = (p.num_experts + 31) / 32, first = threadIdx.x % 32 * per_lane;
  const uint32_t end = first + per_lane < p.num_experts ? first + per_lane : p.num_experts;
  uint32_t num_slots = 0, num_active = 0;
  for (uint32_t e = first; e < end; ++e) {
    num_slots += shared.num_slots[e];
    num_active += shared.num_slots[e] != 0;
  }
  uint32_t slot = sum_below(num_slots), rank = sum_below(num_active);
  for (uint32_t e = first; e < end; ++e) {
    shared.slot_begin[e] = static_cast<uint16_t>(slot);
    shared.rank[e] = static_cast<uint16_t>(rank);
    slot += shared.num_slots[e];
    rank += shared.num_slots[e] != 0;
  }
  if (threadIdx.x % 32 != 31) return;
  *p.route.num_active = rank;
  p.route.slot_begin[rank] = slot;
}

/// All compute warps of one block. Not inlined: it is long, and called in two places.
__device__ __attribute__((noinline)) inline void select_experts(SelectShared& shared, const SelectExpertsParams& p) {
  constexpr uint32_t kThreads = kComputeWarps * 32;
  for (uint32_t token = threadIdx.x / 32; token < p.num_tokens; token += kComputeWarps)
    choose_experts(shared, p, token);
  compute_barrier();
  for (uint32_t e = threadIdx.x; e < p.num_experts; e += kThreads) {
    uint32_t count = 0;
    for_each_token(shared, p, e, [&](uint32_t) { ++count; });
    shared.num_slots[e] = static_cast<uint16_t>(count);
  }
  compute_barrier();
  if (threadIdx.x < 32) order_experts(shared, p);
  compute_barrier();
  for (uint32_t e = threadIdx.x; e < p.num_experts; e += kThreads) {
    if (shared.num_slots[e] == 0) continue;
    uint32_t slot = shared.slot_begin[e];
    p.route.active_experts[shared.rank[e]] = e;
    p.route.slot_begin[shared.rank[e]] = slot;
    for_each_token(shared, p, e, [&](uint32_t token) {
      uint32_t entry = token * p.experts_per_token;
      for (uint32_t i = 1; i < p.experts_per_token && shared.experts[entry] != e; ++i) ++entry;
      p.route.slot_token[slot] = token;
      p.route.slot_weight[slot++] = shared.weights[entry];
    });
  }
}

}  // namespace mimo_rt::cuda
