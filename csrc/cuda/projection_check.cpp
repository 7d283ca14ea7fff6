// Checks of the projection kernels' arguments. No CUDA in here: they are tested on every machine.
#include "cuda/param_checks.h"
#include "cuda/projection.h"

namespace mimo_rt::cuda {
namespace {

constexpr const char* kWhere = "cuda.projection";

void check_qkv(const ProjectionParams& p) {
  const QkvOutput& qkv = p.qkv;
  check_pointer(kWhere, "qkv.tiles", qkv.tiles, alignof(QkvTile));
  check_pointer(kWhere, "qkv.k_rows", qkv.k_rows, sizeof(void*));
  check_pointer(kWhere, "qkv.v_rows", qkv.v_rows, sizeof(void*));
  MIMO_RT_CHECK(qkv.qk_head_dim != 0 && qkv.qk_head_dim <= kMaxWidth, unsupported_shape, kWhere,
                "qkv.qk_head_dim: expected 1 .. ", kMaxWidth, ", got ", qkv.qk_head_dim);
  MIMO_RT_CHECK(qkv.num_q_heads != 0 && qkv.num_q_heads <= p.rows / qkv.qk_head_dim, unsupported_shape, kWhere,
                "qkv.num_q_heads: expected 1 .. ", p.rows / qkv.qk_head_dim, ", what the matrix has rows for, got ",
                qkv.num_q_heads);
  check_rows(kWhere, "qkv.q", qkv.q, qkv.num_q_heads * qkv.qk_head_dim);
  MIMO_RT_CHECK(qkv.rotary_dim % 2 == 0 && qkv.rotary_dim <= qkv.qk_head_dim, unsupported_shape,
                kWhere, "qkv.rotary_dim: expected an even number up to qk_head_dim ",
                qkv.qk_head_dim, ", got ", qkv.rotary_dim);
  if (qkv.rotary_dim != 0) check_pointer(kWhere, "qkv.cos_sin", qkv.cos_sin, 4);
}

void check_store(const ProjectionParams& p) {
  if (p.store == ProjectionStore::qkv) return check_qkv(p);
  const uint32_t max_columns = p.store == ProjectionStore::gate_up ? p.rows / 2 : p.rows;
  MIMO_RT_CHECK(p.num_columns <= max_columns && p.num_columns != 0, unsupported_shape, kWhere,
                "num_columns: expected 1 .. ", max_columns, ", got ", p.num_columns);
  switch (p.store) {
    case ProjectionStore::f32: return check_rows(kWhere, "out_f32", p.out_f32, p.num_columns);
    case ProjectionStore::bf16:
    case ProjectionStore::gate_up:
    case ProjectionStore::add_residual:
      check_capture(kWhere, p.capture);
      return check_rows(kWhere, "out_bf16", p.out_bf16, p.num_columns);
    case ProjectionStore::scores:
      MIMO_RT_CHECK(p.num_tokens <= kMaxScoredTokens, capacity, kWhere, "num_tokens: expected at most ", kMaxScoredTokens,
                    " to be scored, got ", p.num_tokens);
      check_pointer(kWhere, "sampled", p.sampled, 8);
      return check_rows(kWhere, "out_f32", p.out_f32, p.num_columns);
    case ProjectionStore::qkv: return;
  }
  fail(ErrorCode::invalid_argument, kWhere, "store: expected 0 .. 5, got ",
       static_cast<uint32_t>(p.store));
}

}  // namespace

void check_projection(const ProjectionParams& p) {
  check_size(kWhere, "rows", p.rows, 16);
  check_size(kWhere, "k", p.k);
  check_num_tokens(kWhere, p.num_tokens);
  check_pointer(kWhere, "tiles", p.tiles, 16);
  check_rows(kWhere, "x", p.x, p.k);
  if (p.row_ids) check_pointer(kWhere, "row_ids", p.row_ids, 4);
  if (p.norm_weight) {
    check_pointer(kWhere, "norm_weight", p.norm_weight, 16);
    MIMO_RT_CHECK(p.norm_eps >= 0.0f, invalid_argument, kWhere,
                  "norm_eps: expected a number >= 0, got ", p.norm_eps);
  }
  MIMO_RT_CHECK(p.num_segments >= 1 && p.num_segments <= kMaxProjectionSegments, unsupported_shape,
                kWhere, "num_segments: expected 1 .. ", kMaxProjectionSegments, ", got ",
                p.num_segments);
  MIMO_RT_CHECK(p.format == ProjectionFormat::fp8_e4m3 || p.format == ProjectionFormat::bf16,
                invalid_argument, kWhere, "format: expected 0 or 1, got ",
                static_cast<uint32_t>(p.format));
  check_store(p);
}

void check_rms_norm(const RmsNormParams& p) {
  constexpr const char* kNorm = "cuda.rms_norm";
  check_size(kNorm, "k", p.k);
  MIMO_RT_CHECK(p.num_tokens != 0, capacity, kNorm, "num_tokens: expected > 0, got 0");
  check_rows(kNorm, "x", p.x, p.k);
  if (p.row_ids) check_pointer(kNorm, "row_ids", p.row_ids, 4);
  check_rows(kNorm, "out", p.out, p.k);
  check_pointer(kNorm, "weight", p.weight, 16);
  MIMO_RT_CHECK(p.eps >= 0.0f, invalid_argument, kNorm, "eps: expected a number >= 0, got ", p.eps);
}

}  // namespace mimo_rt::cuda
