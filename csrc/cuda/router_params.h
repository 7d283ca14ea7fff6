// What the router kernels are given, and their constants. For g++ and nvcc.
//
//   logits[token, expert] = sum over k of W[expert, k] * x[token, k]
//   sigma = 1 / (1 + e^-logit); chosen: the experts_per_token largest sigma + bias, the lower
//   expert among equals, NaN last; weight = sigma / (1e-20 + sum of the chosen sigma) * factor
//
// The result is the RouteTable that the expert kernels take (plan/route_table.h).
// Order of every sum (nothing else changes a bit of the result): see device/tasks/router.cuh.
#pragma once

#include <cstdint>

#include "cuda/expert_mlp_params.h"
#include "cuda/kernel_params.h"
#include "plan/route_table.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kMaxExperts = 512;
inline constexpr uint32_t kMaxExpertsPerToken = 32;

enum class RouterFormat : uint8_t { f32, bf16 };

struct RouterLogitsParams {
  const uint8_t* weights = nullptr;  ///< [num_experts, hidden_size] as the checkpoint stores them
  RowsView<const uint16_t> x;        ///< BF16 [num_tokens, hidden_size], normalised
  RowsView<float> logits;            ///< [num_tokens, num_experts]
  RouterFormat format = RouterFormat::f32;
  uint32_t num_tokens = 0;   ///< 1 .. kMaxTokens
  uint32_t num_experts = 0;  ///< 1 .. kMaxExperts
  uint32_t hidden_size = 0;  ///< multiple of 32
};

struct SelectExpertsParams {
  RowsView<const float> logits;  ///< [num_tokens, num_experts]
  const float* bias = nullptr;   ///< [num_experts] for the choice only; nullptr: none
  RouteTable route{};            ///< room for num_experts and num_tokens * experts_per_token slots
  uint32_t num_tokens = 0;       ///< 1 .. kMaxTokens; times experts_per_token: <= kMaxExpertSlots
  uint32_t num_experts = 0;      ///< 1 .. kMaxExperts
  uint32_t experts_per_token = 0;  ///< 1 .. kMaxExpertsPerToken, num_experts
  bool norm_topk_prob = true;      ///< false: weight = sigma * factor
  float routed_scaling_factor = 1.0f;
};

}  // namespace mimo_rt::cuda
