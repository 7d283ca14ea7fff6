// Checks of the expert kernels' arguments. No CUDA in here: they are tested on every machine.
#include "cuda/expert_mlp.h"
#include "cuda/param_checks.h"

namespace mimo_rt::cuda {
namespace {

template <typename Params>
void check_common(const char* where, const Params& params) {
  check_size(where, "hidden_size", params.hidden_size);
  check_size(where, "width", params.width);
  check_num_tokens(where, params.num_tokens);
  MIMO_RT_CHECK(params.max_slots <= kMaxExpertSlots, capacity, where,
                "max_slots: expected at most ", kMaxExpertSlots, ", got ", params.max_slots);
  check_pointer(where, "tiles", params.tiles, 16);
  check_pointer(where, "route.num_active", params.route.num_active, 4);
  check_pointer(where, "route.active_experts", params.route.active_experts, 4);
  check_pointer(where, "route.slot_begin", params.route.slot_begin, 4);
  check_pointer(where, "route.slot_token", params.route.slot_token, 4);
}

}  // namespace

void check_expert_gate_up(const ExpertGateUpParams& params) {
  constexpr const char* kWhere = "cuda.expert_gate_up";
  check_common(kWhere, params);
  check_rows(kWhere, "x", params.x, params.hidden_size);
  check_rows(kWhere, "act", params.act, params.width);
}

void check_expert_down(const ExpertDownParams& params) {
  constexpr const char* kWhere = "cuda.expert_down";
  check_common(kWhere, params);
  check_pointer(kWhere, "route.slot_weight", params.route.slot_weight, 4);
  check_rows(kWhere, "act", params.act, params.width);
  if (params.residual.data)
    check_rows(kWhere, "residual", params.residual, params.hidden_size);
  else
    check_rows(kWhere, "sums", params.sums, params.hidden_size);
  MIMO_RT_CHECK(params.num_segments >= 1 && params.num_segments <= kMaxDownSegments,
                unsupported_shape, kWhere, "num_segments: expected 1 .. ", kMaxDownSegments,
                ", got ", params.num_segments);
}

}  // namespace mimo_rt::cuda
