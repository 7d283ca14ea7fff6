// Checks of the expert kernels' arguments. No CUDA in here: they are tested on every machine.
#include "cuda/expert_fp8.h"
#include "cuda/expert_gemm.h"
#include "cuda/expert_mlp.h"
#include "cuda/expert_mxfp8.h"
#include "cuda/param_checks.h"

namespace mimo_rt::cuda {
namespace {

struct Limits {
  uint32_t num_tokens, num_slots;
};
constexpr Limits kFewTokens{kMaxExpertTokens, kMaxExpertSlots};
constexpr Limits kManyTokens{kMaxGemmTokens, kMaxGemmSlots};

template <typename Params>
void check_common(const char* where, const Params& params, const Limits& limits) {
  check_size(where, "hidden_size", params.hidden_size);
  check_size(where, "width", params.width);
  check_num_rows(where, "num_tokens", params.num_tokens, limits.num_tokens);
  MIMO_RT_CHECK(params.max_slots <= limits.num_slots, capacity, where,
                "max_slots: expected at most ", limits.num_slots, ", got ", params.max_slots);
  check_pointer(where, "tiles", params.tiles, 16);
  check_pointer(where, "route.num_active", params.route.num_active, 4);
  check_pointer(where, "route.active_experts", params.route.active_experts, 4);
  check_pointer(where, "route.slot_begin", params.route.slot_begin, 4);
  check_pointer(where, "route.slot_token", params.route.slot_token, 4);
}

void check_gate_up(const char* where, const ExpertGateUpParams& params, const Limits& limits) {
  check_common(where, params, limits);
  check_rows(where, "x", params.x, params.hidden_size);
  check_rows(where, "act", params.act, params.width);
}

void check_down(const char* where, const ExpertDownParams& params, const Limits& limits) {
  check_common(where, params, limits);
  check_pointer(where, "route.slot_weight", params.route.slot_weight, 4);
  check_rows(where, "act", params.act, params.width);
  if (params.residual.data)
    check_rows(where, "residual", params.residual, params.hidden_size);
  else
    check_rows(where, "sums", params.sums, params.hidden_size);
  check_capture(where, params.capture);
  MIMO_RT_CHECK(params.num_segments >= 1 && params.num_segments <= kMaxDownSegments,
                unsupported_shape, where, "num_segments: expected 1 .. ", kMaxDownSegments,
                ", got ", params.num_segments);
}

template <typename Params>
void check_gemm(const char* where, const Params& params) {
  MIMO_RT_CHECK(params.num_experts >= 1 && params.num_experts <= kMaxGemmExperts,
                unsupported_shape, where, "num_experts: expected 1 .. ", kMaxGemmExperts, ", got ",
                params.num_experts);
  check_pointer(where, "packed", params.packed, 16);
}

/// Of the kernels whose last step is combine_slots.cuh.
void check_no_capture(const char* where, const ExpertDownParams& params) {
  MIMO_RT_CHECK(!params.capture.rows, invalid_argument, where,
                "capture.rows: expected null, this kernel has one place for its results");
}

template <typename Params>
void check_mxfp8(const char* where, const Params& params) {
  constexpr uint32_t kAlignment = 128;
  check_gemm(where, params);
  check_pointer(where, "tiles", params.tiles, kAlignment);
  check_pointer(where, "packed", params.packed, kAlignment);
  check_pointer(where, "workspace", params.workspace, kAlignment);
}

template <typename Params>
BlockScaledGemm products_of(const Params& p, const CudaMxShape& matrix, float* out) {
  const Mxfp8Slots slots(p.packed, p.max_slots, matrix.k);
  BlockScaledGemm gemm;
  gemm.weights = p.tiles;
  gemm.rows = matrix.rows;
  gemm.k = slots.padded_k;
  gemm.codes = slots.codes;
  gemm.scales = slots.scales;
  gemm.out = out;
  gemm.route = p.route;
  gemm.num_experts = p.num_experts;
  gemm.max_slots = p.max_slots;
  gemm.workspace = p.workspace;
  return gemm;
}

}  // namespace

void check_expert_gate_up(const ExpertGateUpParams& params) {
  check_gate_up("cuda.expert_gate_up", params, kFewTokens);
}

void check_expert_down(const ExpertDownParams& params) {
  check_down("cuda.expert_down", params, kFewTokens);
}

void check_expert_gate_up_gemm(const ExpertGateUpGemmParams& params) {
  constexpr const char* kWhere = "cuda.expert_gate_up_gemm";
  check_gate_up(kWhere, params, kManyTokens);
  check_gemm(kWhere, params);
}

void check_expert_down_gemm(const ExpertDownGemmParams& params) {
  constexpr const char* kWhere = "cuda.expert_down_gemm";
  check_down(kWhere, params, kManyTokens);
  check_gemm(kWhere, params);
  check_no_capture(kWhere, params);
  check_pointer(kWhere, "partials", params.partials, 16);
}

void check_expert_gate_up_mxfp8(const ExpertGateUpMxfp8Params& params) {
  constexpr const char* kWhere = "cuda.expert_gate_up_mxfp8";
  check_gate_up(kWhere, params, kManyTokens);
  check_mxfp8(kWhere, params);
  check_pointer(kWhere, "products", params.products, 128);
}

void check_expert_down_mxfp8(const ExpertDownMxfp8Params& params) {
  constexpr const char* kWhere = "cuda.expert_down_mxfp8";
  check_down(kWhere, params, kManyTokens);
  check_mxfp8(kWhere, params);
  check_no_capture(kWhere, params);
  check_pointer(kWhere, "partials", params.partials, 128);
  MIMO_RT_CHECK(params.num_segments == 1, unsupported_shape, kWhere,
                "num_segments: expected 1, got ", params.num_segments,
                ". Sums over ranks have an order of their own in expert_down_gemm alone.");
}

BlockScaledGemm gate_up_products(const ExpertGateUpMxfp8Params& params) {
  return products_of(params, {2 * params.width, params.hidden_size}, params.products);
}

BlockScaledGemm down_products(const ExpertDownMxfp8Params& params) {
  return products_of(params, {params.hidden_size, params.width}, params.partials);
}

void check_expert_gate_up_fp8(const ExpertGateUpFp8Params& params) {
  constexpr const char* kWhere = "cuda.expert_gate_up_fp8";
  check_gate_up(kWhere, params, kFewTokens);
  check_rows(kWhere, "x8.codes", params.x8.codes, params.hidden_size);
  check_pointer(kWhere, "x8.scales", params.x8.scales, 4);
}

void check_expert_down_fp8(const ExpertDownFp8Params& params) {
  constexpr const char* kWhere = "cuda.expert_down_fp8";
  check_down(kWhere, params, kFewTokens);
  check_rows(kWhere, "act8.codes", params.act8.codes, params.width);
  check_pointer(kWhere, "act8.scales", params.act8.scales, 4);
}

}  // namespace mimo_rt::cuda
