// What the expert kernels are given, and their constants. For g++ and nvcc.
//
//   expert_gate_up  act[slot] = silu(W_gate x) * (W_up x)     for every slot of the route
//   expert_down     sums[token] = sum of w * (W_down act[slot]) over its slots, experts ascending;
//                   or residual[token] = bf16(residual[token] + that)
//
// Order of every sum (nothing else changes a bit of the result): see device/tasks/expert_mlp.cuh.
#pragma once

#include <cstdint>

#include "cuda/kernel_params.h"
#include "plan/route_table.h"
#include "weights/cuda_tiles.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kMaxExpertTokens = kMaxTokens;
inline constexpr uint32_t kMaxExpertSlots = 512;  ///< (token, expert) pairs of one call
inline constexpr uint32_t kMaxDownSegments = 64;

// K is cut into this many segments in gate_up, one per compute warp.
inline constexpr uint32_t kGateUpSegments = kComputeWarps;

struct ExpertGateUpParams {
  const uint8_t* tiles = nullptr;  ///< expert 0 of the layer; the others follow
  RowsView<const uint16_t> x;      ///< BF16 [num_tokens, hidden_size]
  RowsView<uint16_t> act;          ///< BF16 [num_slots, width]
  RouteTable route{};
  uint32_t num_tokens = 0;              ///< 1 .. kMaxExpertTokens
  uint32_t max_slots = 0;               ///< the route has no more, at most kMaxExpertSlots
  uint32_t hidden_size = 0, width = 0;  ///< multiples of 32
};

struct ExpertDownParams {
  const uint8_t* tiles = nullptr;  ///< expert 0 of the layer; the others follow
  RowsView<const uint16_t> act;    ///< BF16 [num_slots, width]
  RowsView<float> sums;            ///< [num_tokens, hidden_size]; not used with a residual
  RowsView<uint16_t> residual;     ///< BF16 [num_tokens, hidden_size]; data nullptr: none
  RouteTable route{};
  uint32_t num_tokens = 0;              ///< 1 .. kMaxExpertTokens
  uint32_t max_slots = 0;               ///< the route has no more, at most kMaxExpertSlots
  uint32_t hidden_size = 0, width = 0;  ///< multiples of 32
  /// Parts of K that are summed over all experts before they are added up, 1 .. kMaxDownSegments:
  /// 8 / number of ranks.
  uint32_t num_segments = 1;
  CaptureOutput capture;  ///< of the residual
};

/// With activations rounded to FP8 (E4M3), an option of its own: results change. A token's row has
/// one scale, its largest magnitude / 448; its products are summed in FP32 per 64 k. Weights stay
/// exact, but for blocks of 32 that are more than 2^11 times smaller than their neighbour (the other
/// half of 64 k): they count as 0, as do scales of 2^-121 and below, and rows below 2^-100.
struct ExpertFp8Rows {
  RowsView<uint8_t> codes;  ///< [num_tokens, hidden_size] or [max_slots, width]: written by the call
  float* scales = nullptr;  ///< [num_tokens] or [max_slots]: written by the call
};
struct ExpertGateUpFp8Params : ExpertGateUpParams {
  ExpertFp8Rows x8;  ///< of x
};
struct ExpertDownFp8Params : ExpertDownParams {
  ExpertFp8Rows act8;  ///< of act
};

}  // namespace mimo_rt::cuda
