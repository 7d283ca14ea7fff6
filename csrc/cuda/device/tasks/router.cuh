// The router's matrix: FP32 logits of up to 512 experts. A pair of role functions, as the expert
// tasks; the weights are rows as the checkpoint has them, and come through the ring.
//
// FMAs, not tensor cores: FP32 weights would have to be split in three BF16 parts, and 8 tokens of
// 384 experts are 19 M FMAs, which all multiprocessors do in half the time that the weights take.
//
// Order of the sums. K is cut into 8 segments of whole tiles of 32. Inside a segment each lane adds
// 8 neighbours of every 256 k, ascending, then the lanes are added as a tree, then the segments in
// order. The number of tokens, of experts and of blocks changes none of it.
#pragma once

#include "cuda/device/math/block_sums.cuh"
#include "cuda/device/tasks/weight_stream.cuh"
#include "cuda/router_params.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kRouterRows = 4;    ///< experts of a unit: they share the activations
inline constexpr uint32_t kRouterTokens = 8;  ///< of a unit
static_assert(kRouterRows * kComputeWarps <= kNumStages, "all rows of a unit are in the ring");

struct RouterShared {
  WeightRing ring;
  float partials[kComputeWarps][kRouterRows][kRouterTokens];  ///< of each segment
};

struct F32Rows {
  static constexpr uint32_t kTileK = 32, kTileBytes = 4 * kTileK, kStageTiles = 32;
  /// Eight neighbours.
  __device__ static void load(const uint8_t* stage, uint32_t k, float (&w)[8]) {
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const auto words = reinterpret_cast<const ptx::Words4*>(stage + k * 4)[half];
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) w[4 * half + i] = ptx::as_float(words.word[i]);
    }
  }
};

__device__ __forceinline__ void widen_words(const ptx::Words4& words, float (&values)[8]) {
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    values[2 * i] = ptx::low_bf16(words.word[i]);
    values[2 * i + 1] = ptx::high_bf16(words.word[i]);
  }
}

struct Bf16Rows {
  static constexpr uint32_t kTileK = 32, kTileBytes = 2 * kTileK, kStageTiles = 64;
  __device__ static void load(const uint8_t* stage, uint32_t k, float (&w)[8]) {
    widen_words(*reinterpret_cast<const ptx::Words4*>(stage + k * 2), w);
  }
};

/// Up to 4 experts times up to 8 tokens. Compute warp i sums segment i of all of them. A step of 64
/// rows goes through the weights 8 times, mostly in L2.
template <typename Rows>
struct RouterUnit {
  uint32_t first_expert, num_experts, first_token, num_tokens;
  uint32_t num_stages;  ///< of a segment of one expert

  __device__ static uint32_t count(const RouterLogitsParams& p) {
    return (p.num_experts + kRouterRows - 1) / kRouterRows *
           ((p.num_tokens + kRouterTokens - 1) / kRouterTokens);
  }
  __device__ RouterUnit(const RouterLogitsParams& p, uint32_t unit) {
    const uint32_t num_expert_groups = (p.num_experts + kRouterRows - 1) / kRouterRows;
    first_expert = unit % num_expert_groups * kRouterRows;
    first_token = unit / num_expert_groups * kRouterTokens;
    const uint32_t experts = p.num_experts - first_expert, tokens = p.num_tokens - first_token;
    num_experts = experts < kRouterRows ? experts : kRouterRows;
    num_tokens = tokens < kRouterTokens ? tokens : kRouterTokens;
    num_stages = stages_per_item<Rows>(p.hidden_size / Rows::kTileK, kComputeWarps);
  }
  __device__ TileRun run(const RouterLogitsParams& p, uint32_t expert, uint32_t segment) const {
    const uint32_t num_tiles = p.hidden_size / Rows::kTileK;
    const uint64_t row_bytes = uint64_t{num_tiles} * Rows::kTileBytes;
    return segment_run<Rows>(p.weights + (first_expert + expert) * row_bytes, num_tiles, segment,
                             kComputeWarps);
  }
  /// Stage `stage` of all experts comes before stage + 1 of any.
  __device__ uint32_t ticket(uint32_t first, uint32_t stage, uint32_t expert,
                             uint32_t segment) const {
    return first + (stage * num_experts + expert) * kComputeWarps + segment;
  }
  __device__ uint32_t num_tickets() const { return num_stages * num_experts * kComputeWarps; }
};

/// Loader warp. Lane i handles the segments of compute warp i.
template <typename Rows>
__device__ void load_router_logits(RouterShared& shared, const RouterLogitsParams& p,
                                   UnitRange range, uint32_t& ticket) {
  const uint64_t l2_policy = ptx::evict_first_policy();
  const uint32_t segment = threadIdx.x % 32;
  for (uint32_t u = range.first; u < range.limit(RouterUnit<Rows>::count(p)); u += range.stride) {
    const RouterUnit<Rows> unit(p, u);
    for (uint32_t stage = 0; segment < kComputeWarps && stage < unit.num_stages; ++stage)
      for (uint32_t expert = 0; expert < unit.num_experts; ++expert) {
        const TileRun run = unit.run(p, expert, segment);
        const uint32_t done = stage * Rows::kStageTiles;
        const uint32_t rest = run.num_tiles > done ? run.num_tiles - done : 0;
        shared.ring.fill(unit.ticket(ticket, stage, expert, segment),
                         run.tiles + done * Rows::kTileBytes,
                         tiles_of_stage<Rows>(rest) * Rows::kTileBytes, l2_policy);
      }
    ptx::sync_warp();
    ticket += unit.num_tickets();
  }
}

/// This warp's segment of a unit, to the partial sums.
template <typename Rows>
__device__ void multiply_segment(RouterShared& shared, const RouterLogitsParams& p,
                                 const RouterUnit<Rows>& unit, uint32_t first_ticket) {
  const uint32_t segment = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
  const TileRun run = unit.run(p, 0, segment);
  float sums[kRouterRows][kRouterTokens] = {};
  uint32_t k_begin = run.first_tile * Rows::kTileK, rest = run.num_tiles;
  for (uint32_t stage = 0; stage < unit.num_stages; ++stage) {
    const uint8_t* rows[kRouterRows];
#pragma unroll
    for (uint32_t expert = 0; expert < kRouterRows; ++expert) {
      const uint32_t existing = expert < unit.num_experts ? expert : 0;  // twice: not stored
      rows[expert] = shared.ring.wait(unit.ticket(first_ticket, stage, existing, segment));
    }
    const uint32_t num_tiles = tiles_of_stage<Rows>(rest);
    for (uint32_t k = lane_idx * 8; k < num_tiles * Rows::kTileK; k += 256) {
      ptx::Words4 words[kRouterTokens] = {};  // all are on their way before one is used
#pragma unroll
      for (uint32_t token = 0; token < kRouterTokens; ++token) {
        if (token == kRouterTokens / 2 && token >= unit.num_tokens) break;  // a decode step's few
        words[token] = ptx::load_16_bytes_keep(
            p.x.row(unit.first_token + (token < unit.num_tokens ? token : 0)) + k_begin + k);
      }
      float w[kRouterRows][8];
#pragma unroll
      for (uint32_t expert = 0; expert < kRouterRows; ++expert)
        Rows::load(rows[expert], k, w[expert]);
#pragma unroll
      for (uint32_t token = 0; token < kRouterTokens; ++token) {
        if (token % 2 == 0 && token >= unit.num_tokens) break;
        float x[8];
        widen_words(words[token], x);
#pragma unroll
        for (uint32_t expert = 0; expert < kRouterRows; ++expert)
#pragma unroll
          for (uint32_t i = 0; i < 8; ++i)
            sums[expert][token] = fmaf(w[expert][i], x[i], sums[expert][token]);
      }
    }
    for (uint32_t expert = 0; expert < unit.num_experts; ++expert)
      shared.ring.release(unit.ticket(first_ticket, stage, expert, segment), lane_idx);
    k_begin += num_tiles * Rows::kTileK;
    rest -= num_tiles;
  }
#pragma unroll
  for (uint32_t expert = 0; expert < kRouterRows; ++expert)
#pragma unroll
    for (uint32_t token = 0; token < kRouterTokens; ++token) {
      if (token >= unit.num_tokens) break;
      const float sum = warp_sum(sums[expert][token]);
      if (lane_idx == 0) shared.partials[segment][expert][token] = sum;
    }
}

/// One unit. What it is is worked out again after the products, which need the registers.
template <typename Rows>
__device__ void compute_router_unit(RouterShared& shared, const RouterLogitsParams& p,
                                    uint32_t unit_idx, uint32_t& ticket) {
  multiply_segment(shared, p, RouterUnit<Rows>(p, unit_idx), ticket);
  compute_barrier();
  const uint32_t expert = threadIdx.x % kRouterRows, token = threadIdx.x / kRouterRows;
  const RouterUnit<Rows> unit(p, unit_idx);
  ticket += unit.num_tickets();
  if (expert < unit.num_experts && token < unit.num_tokens) {
    float logit = 0.0f;
#pragma unroll
    for (uint32_t segment = 0; segment < kComputeWarps; ++segment)
      logit += shared.partials[segment][expert][token];
    p.logits.row(unit.first_token + token)[unit.first_expert + expert] = logit;
  }
  compute_barrier();  // before the next unit overwrites the partial sums
}

template <typename Rows>
__device__ void compute_router_logits(RouterShared& shared, const RouterLogitsParams& p,
                                      UnitRange range, uint32_t& ticket) {
  for (uint32_t u = range.first; u < range.limit(RouterUnit<Rows>::count(p)); u += range.stride)
    compute_router_unit<Rows>(shared, p, u, ticket);
}

}  // namespace mimo_rt::cuda
