// Checks of the router kernels' arguments. No CUDA in here: they are tested on every machine.
#include "cuda/router.h"

#include <algorithm>

#include "cuda/param_checks.h"

namespace mimo_rt::cuda {
namespace {

void check_num_experts(const char* where, uint32_t num_experts) {
  MIMO_RT_CHECK(num_experts >= 1 && num_experts <= kMaxExperts, unsupported_shape, where,
                "num_experts: expected 1 .. ", kMaxExperts, ", got ", num_experts);
}

}  // namespace

void check_router_logits(const RouterLogitsParams& p) {
  constexpr const char* kWhere = "cuda.router_logits";
  check_size(kWhere, "hidden_size", p.hidden_size);
  check_num_experts(kWhere, p.num_experts);
  check_num_tokens(kWhere, p.num_tokens);
  check_pointer(kWhere, "weights", p.weights, 16);
  check_rows(kWhere, "x", p.x, p.hidden_size);
  check_rows(kWhere, "logits", p.logits, p.num_experts);
  MIMO_RT_CHECK(p.format == RouterFormat::f32 || p.format == RouterFormat::bf16, invalid_argument,
                kWhere, "format: expected 0 or 1, got ", static_cast<uint32_t>(p.format));
}

void check_select_experts(const SelectExpertsParams& p) {
  constexpr const char* kWhere = "cuda.select_experts";
  check_num_experts(kWhere, p.num_experts);
  check_num_tokens(kWhere, p.num_tokens);
  const uint32_t most = std::min(kMaxExpertsPerToken, p.num_experts);
  MIMO_RT_CHECK(p.experts_per_token >= 1 && p.experts_per_token <= most, unsupported_shape, kWhere,
                "experts_per_token: expected 1 .. ", most, ", got ", p.experts_per_token);
  MIMO_RT_CHECK(p.num_tokens * p.experts_per_token <= kMaxExpertSlots, capacity, kWhere,
                "num_tokens * experts_per_token: expected at most ", kMaxExpertSlots, ", got ",
                p.num_tokens * p.experts_per_token);
  check_rows(kWhere, "logits", p.logits, p.num_experts);
  if (p.bias) check_pointer(kWhere, "bias", p.bias, 4);
  check_pointer(kWhere, "route.num_active", p.route.num_active, 4);
  check_pointer(kWhere, "route.active_experts", p.route.active_experts, 4);
  check_pointer(kWhere, "route.slot_begin", p.route.slot_begin, 4);
  check_pointer(kWhere, "route.slot_token", p.route.slot_token, 4);
  check_pointer(kWhere, "route.slot_weight", p.route.slot_weight, 4);
}

}  // namespace mimo_rt::cuda
