// The draft's part of a plan: its buffers, the phases that make its context, and its pass over a block.
#include "plan/builder.h"

#include "core/checks.h"
#include "core/draft_layer.h"
#include "plan/buffers.h"
#include "plan/kinds.h"

#include <algorithm>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Plan.build";
constexpr uint32_t kMaxDraftLayers = 256;
constexpr uint64_t kMaxDraftWidth = 1u << 24;  // elements of a row, as for the target

void check_range(const char* name, uint64_t value, uint64_t min, uint64_t max) {
  MIMO_RT_CHECK(value >= min && value <= max, unsupported_shape, kWhere, "draft ", name, ": expected ", min, "..", max,
                ", got ", value);
}

void check_heads(const DraftConfig& draft) {
  check_range("num_kv_heads", draft.num_kv_heads, 1, 65535);
  check_range("num_q_heads", draft.num_q_heads, 1, 65535);
  check_range("qk_head_dim", draft.qk_head_dim, 1, 65535);
  check_range("v_head_dim", draft.v_head_dim, 1, 65535);
  MIMO_RT_CHECK(draft.num_q_heads % draft.num_kv_heads == 0, unsupported_shape, kWhere,
                "draft num_q_heads: expected a multiple of num_kv_heads ", draft.num_kv_heads, ", got ",
                draft.num_q_heads);
  MIMO_RT_CHECK(draft.qk_head_dim % kTileRows == 0 && draft.v_head_dim % kTileRows == 0, unsupported_shape, kWhere,
                "draft qk_head_dim and v_head_dim: expected multiples of ", kTileRows, ", got ", draft.qk_head_dim,
                " and ", draft.v_head_dim);
  MIMO_RT_CHECK(draft.rotary_dim % 2 == 0 && draft.rotary_dim <= draft.qk_head_dim, unsupported_shape, kWhere,
                "draft rotary_dim: expected even and <= ", draft.qk_head_dim, ", got ", draft.rotary_dim);
  const uint64_t head_dims = std::max(draft.qk_head_dim, draft.v_head_dim);
  check_range("width of all heads", draft.num_q_heads * head_dims, 1, kMaxDraftWidth);
  check_range("width of all keys and values", uint64_t{draft.num_layers} * draft.num_kv_heads * 2 * head_dims, 1,
              kMaxDraftWidth);
}

void check_target_layers(const DraftConfig& draft, const ModelConfig& config) {
  std::vector<uint32_t> ids = draft.target_layer_ids;
  check_range("number of target_layer_ids", ids.size(), 1, config.num_layers);
  std::sort(ids.begin(), ids.end());
  for (size_t i = 0; i < ids.size(); ++i) {
    MIMO_RT_CHECK(ids[i] < config.num_layers, unsupported_shape, kWhere, "draft target_layer_ids: expected < ",
                  config.num_layers, ", got ", ids[i]);
    MIMO_RT_CHECK(i == 0 || ids[i] != ids[i - 1], unsupported_shape, kWhere,
                  "draft target_layer_ids: expected distinct layers, got ", ids[i], " twice");
  }
  check_range("width of the captured features", uint64_t{ids.size()} * config.hidden_size, 1, kMaxDraftWidth);
}

}  // namespace

void check_draft(const DraftConfig& draft, const ModelConfig& config) {
  MIMO_RT_CHECK(draft.hidden_size == config.hidden_size, unsupported_shape, kWhere,
                "draft hidden_size: expected the target's ", config.hidden_size, ", got ", draft.hidden_size);
  check_range("num_layers", draft.num_layers, 1, kMaxDraftLayers);
  check_range("block_size", draft.block_size, 2, kMaxBlockSize);
  check_range("intermediate_size", draft.intermediate_size, 1, kMaxDraftWidth);
  check_range("draft_vocab_size", draft.draft_vocab_size, 0, config.vocab_size);
  MIMO_RT_CHECK(draft.window_tokens.size() == draft.num_layers, unsupported_shape, kWhere,
                "draft window_tokens: expected ", draft.num_layers, " entries, got ", draft.window_tokens.size());
  check_heads(draft);
  check_target_layers(draft, config);
}

void PlanBuilder::make_draft_buffers() {
  using enum BufferInfo::Space;
  const PlanShape& shape = plan_.shape_;
  const PlanShape::Draft& draft = shape.draft;
  const uint64_t features = draft.target_layer_ids.size() * shape.hidden_size;
  const uint64_t context_kv = uint64_t{draft.num_layers} * draft.num_kv_heads * (draft.qk_head_dim + draft.v_head_dim);
  const uint64_t context_rows = plan_.options_.max_context_rows;
  const bool is_round = plan_.options_.is_round;
  const uint64_t block = draft_ && is_round ? draft.block_size : 0;
  const bool has_norms = !fuse_norms_;
  add_buffer("features", kv, draft_ ? plan_.options_.max_tokens : 0, features, 2);
  add_buffer("context", arena, context_rows, shape.hidden_size, 2);
  add_buffer("context_h", arena, has_norms ? context_rows : 0, shape.hidden_size, 2);
  add_buffer("context_kv", kv, context_rows, context_kv, 2);
  add_buffer("block", output, is_round ? 1 : 0, draft.block_size, 4);
  add_buffer("draft_x", arena, block, shape.hidden_size, 2);
  add_buffer("draft_h", arena, has_norms ? block : 0, shape.hidden_size, 2);
  add_buffer("draft_q", arena, block, uint64_t{draft.num_q_heads} * draft.qk_head_dim, 2);
  add_buffer("draft_kv", arena, block, uint64_t{draft.num_kv_heads} * (draft.qk_head_dim + draft.v_head_dim), 2);
  add_buffer("draft_attn", arena, block, uint64_t{draft.num_q_heads} * draft.v_head_dim, 2);
  add_buffer("draft_act", arena, block, draft.intermediate_size, 2);
  add_buffer("draft_logits", arena, block ? block - 1 : 0, round_up(draft.vocab_size, kTileRows), 4);
}

void PlanBuilder::add_draft_matrix(TaskKind kind, uint16_t layer_idx, uint32_t k, double rows_per_tile,
                                   uint32_t num_rows) {
  const double group_ns = costs_.matrix_tile(PackedFormat::bf16, k, num_rows);
  add_contiguous(kind, layer_idx, group_ns * rows_per_tile / kTileRows);
}

void PlanBuilder::add_context() {
  const uint32_t hidden = config_.hidden_size;
  // As many rows as a step adds, if every step makes the context of the one before.
  const uint32_t rows = std::min(plan_.options_.max_context_rows, plan_.options_.max_tokens);
  const uint32_t num_features = static_cast<uint32_t>(draft_->target_layer_ids.size()) * hidden;
  add_draft_matrix(TaskKind::context_fc, kNoLayer, num_features, kTileRows, rows);
  if (!fuse_norms_)
    add_strided(TaskKind::context_norm, kNoLayer, 1, plan_.options_.max_context_rows, rows, costs_.norm_tile());
  add_draft_matrix(TaskKind::context_kv, kNoLayer, hidden, 0.5 * (draft_->qk_head_dim + draft_->v_head_dim), rows);
}

void PlanBuilder::add_draft_norm(uint16_t layer_idx, bool mlp_norm) {
  if (fuse_norms_) return;
  const uint32_t block = draft_->block_size;
  add_strided(TaskKind::draft_norm, layer_idx, 1, block, block, costs_.norm_tile(), mlp_norm);
}

void PlanBuilder::add_draft_layer(uint16_t layer_idx) {
  const uint32_t block = draft_->block_size, hidden = config_.hidden_size;
  const double num_qk = draft_->num_q_heads + draft_->num_kv_heads, num_v = draft_->num_kv_heads;
  const double qkv_rows = num_qk * draft_->qk_head_dim + num_v * draft_->v_head_dim;
  add_draft_norm(layer_idx, false);
  add_draft_matrix(TaskKind::draft_qkv_proj, layer_idx, hidden, qkv_rows / (num_qk + num_v), block);
  const LayerConfig layer = draft_layer(*draft_, layer_idx);
  const uint32_t shares = attention_shares(layer, block);
  add_strided(TaskKind::draft_attention, layer_idx, shares, block, block, costs_.attention_tile(layer, shares));
  add_draft_matrix(TaskKind::draft_o_proj, layer_idx, draft_->num_q_heads * draft_->v_head_dim, kTileRows, block);
  add_draft_norm(layer_idx, true);
  add_draft_matrix(TaskKind::draft_gate_up_proj, layer_idx, hidden, 2 * kTileRows, block);  // 16 gate, 16 up
  add_draft_matrix(TaskKind::draft_down_proj, layer_idx, draft_->intermediate_size, kTileRows, block);
}

void PlanBuilder::add_draft() {
  const uint32_t block = draft_->block_size, hidden = config_.hidden_size;
  add_strided(TaskKind::draft_embed, kNoLayer, 1, block, block, costs_.small_tile(4.0 * hidden));
  for (uint32_t l = 0; l < draft_->num_layers; ++l) add_draft_layer(static_cast<uint16_t>(l));
  add_draft_norm(kNoLayer, false);
  add_draft_matrix(TaskKind::draft_lm_head, kNoLayer, hidden, kTileRows, block - 1);
  const double vocab = plan_.shape_.draft.vocab_size;
  add_strided(TaskKind::draft_sample, kNoLayer, 1, block, block, costs_.small_tile(4.0 * vocab, 4.0 * vocab));
}

}  // namespace mimo_rt
