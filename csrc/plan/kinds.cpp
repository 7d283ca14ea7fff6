#include "plan/kinds.h"

#include "core/checks.h"
#include "plan/buffers.h"
#include "weights/packed.h"

#include <algorithm>

namespace mimo_rt {
namespace {

uint32_t num_groups(uint32_t rows) { return (rows + kTileRows - 1) / kTileRows; }

uint32_t num_qkv_tiles(const PlanShape::Layer& layer) {
  const uint32_t rotary = (layer.rotary_dim / 2 + 7) / 8;  // 8 pairs per tile
  const uint32_t qk_head = rotary + num_groups(layer.qk_head_dim - layer.rotary_dim);
  return (layer.num_q_heads + layer.num_kv_heads) * qk_head + layer.num_kv_heads * num_groups(layer.v_head_dim);
}

/// What x holds when layer `layer_idx` begins (num_layers: when the last one has ended).
Stage residual_before(const PlanShape& shape, uint32_t layer_idx) {
  if (layer_idx == 0) return {TaskKind::embed, kNoLayer, false};
  const TaskKind last = shape.layers[layer_idx - 1].is_moe ? TaskKind::expert_down : TaskKind::down_proj;
  return {last, static_cast<uint16_t>(layer_idx - 1), false};
}

/// The same for draft_x.
Stage draft_residual_before(uint32_t layer_idx) {
  if (layer_idx == 0) return {TaskKind::draft_embed, kNoLayer, false};
  return {TaskKind::draft_down_proj, static_cast<uint16_t>(layer_idx - 1), false};
}

/// The rms_norm or draft_norm whose rows `task` consumes.
Stage norm_of(const Task& task) {
  const bool is_draft = task.kind == TaskKind::draft_qkv_proj || task.kind == TaskKind::draft_gate_up_proj ||
                        task.kind == TaskKind::draft_lm_head;
  const bool is_attn = task.kind == TaskKind::qkv_proj || task.kind == TaskKind::draft_qkv_proj;
  return {is_draft ? TaskKind::draft_norm : TaskKind::rms_norm, task.layer_idx,
          !is_attn && task.layer_idx != kNoLayer};
}

}  // namespace

Scope scope_of(TaskKind kind) {
  switch (kind) {
    case TaskKind::embed:
    case TaskKind::lm_head: return Scope::model;
    case TaskKind::sample: return Scope::step;
    case TaskKind::rms_norm: return Scope::norm;
    case TaskKind::qkv_proj:
    case TaskKind::attention:
    case TaskKind::o_proj: return Scope::any_layer;
    case TaskKind::router:
    case TaskKind::select_experts:
    case TaskKind::expert_gate_up:
    case TaskKind::expert_down: return Scope::moe_layer;
    case TaskKind::gate_up_proj:
    case TaskKind::down_proj: return Scope::dense_layer;
    case TaskKind::context_fc:
    case TaskKind::context_norm:
    case TaskKind::context_kv: return Scope::context;
    case TaskKind::draft_embed:
    case TaskKind::draft_lm_head:
    case TaskKind::draft_sample:
    case TaskKind::accept: return Scope::round;
    case TaskKind::draft_qkv_proj:
    case TaskKind::draft_attention:
    case TaskKind::draft_o_proj:
    case TaskKind::draft_gate_up_proj:
    case TaskKind::draft_down_proj: return Scope::draft_layer;
    case TaskKind::draft_norm: return Scope::draft_norm;
  }
  fail(ErrorCode::internal, "plan", "task kind ", static_cast<int>(kind), " has no scope");
}

bool takes_norm(TaskKind kind) {
  switch (kind) {
    case TaskKind::qkv_proj:
    case TaskKind::router:
    case TaskKind::expert_gate_up:
    case TaskKind::gate_up_proj:
    case TaskKind::lm_head:
    case TaskKind::context_kv:
    case TaskKind::draft_qkv_proj:
    case TaskKind::draft_gate_up_proj:
    case TaskKind::draft_lm_head: return true;
    default: return false;
  }
}

bool chooses_norm(TaskKind kind) { return kind == TaskKind::rms_norm || kind == TaskKind::draft_norm; }

int32_t capture_index(const PlanShape& shape, uint16_t layer_idx) {
  const std::vector<uint32_t>& ids = shape.draft.target_layer_ids;
  const auto found = std::find(ids.begin(), ids.end(), layer_idx);
  return found == ids.end() ? -1 : static_cast<int32_t>(found - ids.begin());
}

uint32_t context_kv_begin(const PlanShape::Draft& draft, uint32_t layer_idx) {
  return layer_idx * draft.num_kv_heads * (draft.qk_head_dim + draft.v_head_dim);
}

TaskFields expected_fields(const Task& task) {
  const uint16_t features = (task.flags & kCapture) ? uint16_t{kFeatures} : kNoBuffer;
  const bool fused = task.flags & kFusedNorm;
  const uint16_t rows = fused ? kX : kH, draft_rows = fused ? kDraftX : kDraftH;
  const uint16_t kv = static_cast<uint16_t>(kFirstKv + task.layer_idx);
  switch (task.kind) {
    case TaskKind::embed: return {(task.flags & kFromBlock) ? kBlock : kTokens, kNoBuffer, kX, kNoBuffer};
    case TaskKind::rms_norm: return {kX, kNoBuffer, kH, kNoBuffer};
    case TaskKind::qkv_proj: return {rows, kNoBuffer, kQ, kv};
    case TaskKind::attention: return {kQ, kv, kAttn, kNoBuffer};
    case TaskKind::o_proj: return {kAttn, kNoBuffer, kX, kNoBuffer};
    case TaskKind::router: return {rows, kNoBuffer, kRouterLogits, kNoBuffer};
    case TaskKind::select_experts: return {kRouterLogits, kNoBuffer, kRoute, kNoBuffer};
    case TaskKind::expert_gate_up: return {rows, kRoute, kAct, kNoBuffer};
    case TaskKind::expert_down: return {kAct, kRoute, kX, features};
    case TaskKind::gate_up_proj: return {rows, kNoBuffer, kAct, kNoBuffer};
    case TaskKind::down_proj: return {kAct, kNoBuffer, kX, features};
    case TaskKind::lm_head: return {rows, kNoBuffer, kLogits, kNoBuffer};
    case TaskKind::sample: return {kLogits, kNoBuffer, kSampled, kNoBuffer};
    case TaskKind::context_fc: return {kFeatures, kNoBuffer, kContext, kNoBuffer};
    case TaskKind::context_norm: return {kContext, kNoBuffer, kContextH, kNoBuffer};
    case TaskKind::context_kv: return {fused ? kContext : kContextH, kNoBuffer, kContextKv, kNoBuffer};
    case TaskKind::draft_embed: return {kBlock, kNoBuffer, kDraftX, kNoBuffer};
    case TaskKind::draft_norm: return {kDraftX, kNoBuffer, kDraftH, kNoBuffer};
    case TaskKind::draft_qkv_proj: return {draft_rows, kNoBuffer, kDraftQ, kDraftKv};
    case TaskKind::draft_attention: return {kDraftQ, kDraftKv, kDraftAttn, kNoBuffer};
    case TaskKind::draft_o_proj: return {kDraftAttn, kNoBuffer, kDraftX, kNoBuffer};
    case TaskKind::draft_gate_up_proj: return {draft_rows, kNoBuffer, kDraftAct, kNoBuffer};
    case TaskKind::draft_down_proj: return {kDraftAct, kNoBuffer, kDraftX, kNoBuffer};
    case TaskKind::draft_lm_head: return {draft_rows, kNoBuffer, kDraftLogits, kNoBuffer};
    case TaskKind::draft_sample: return {kDraftLogits, kNoBuffer, kBlock, kNoBuffer};
    case TaskKind::accept: return {kLogits, kDraftLogits, kBlock, kNoBuffer};
  }
  fail(ErrorCode::internal, "plan", "task kind ", static_cast<int>(task.kind), " has no fields");
}

Stage stage_of(const Task& task) { return {task.kind, task.layer_idx, (task.flags & kMlpNorm) != 0}; }

std::string stage_name(const Stage& stage) {
  const char* kind = task_kind_name(stage.kind);
  if (stage.layer_idx == kNoLayer) return concat(chooses_norm(stage.kind) ? "final " : "", kind);
  const char* which = !chooses_norm(stage.kind) ? "" : stage.mlp_norm ? "mlp " : "attn ";
  return concat("layer ", stage.layer_idx, ' ', which, kind);
}

Stage source_stage(const PlanShape& shape, const Task& task, uint16_t buffer) {
  const uint16_t layer = task.layer_idx;
  const auto of = [layer](TaskKind kind) { return Stage{kind, layer, false}; };
  if (buffer >= kFirstKv) return of(TaskKind::qkv_proj);
  switch (buffer) {
    case kX:
      switch (task.kind) {  // attention and its norm see the layer's input, the MLP sees what o_proj left
        case TaskKind::qkv_proj:
        case TaskKind::o_proj: return residual_before(shape, layer);
        case TaskKind::lm_head: return residual_before(shape, static_cast<uint32_t>(shape.layers.size()));
        case TaskKind::rms_norm:
          if (layer == kNoLayer) return residual_before(shape, static_cast<uint32_t>(shape.layers.size()));
          if (!(task.flags & kMlpNorm)) return residual_before(shape, layer);
          [[fallthrough]];
        default: return of(TaskKind::o_proj);
      }
    case kH:
    case kDraftH: return norm_of(task);
    case kQ: return of(TaskKind::qkv_proj);
    case kAttn: return of(TaskKind::attention);
    case kRouterLogits: return of(TaskKind::router);
    case kRoute: return of(TaskKind::select_experts);
    case kAct: return of(task.kind == TaskKind::down_proj ? TaskKind::gate_up_proj : TaskKind::expert_gate_up);
    case kLogits: return {TaskKind::lm_head, kNoLayer, false};
    case kContext: return {TaskKind::context_fc, kNoLayer, false};
    case kContextH: return {TaskKind::context_norm, kNoLayer, false};
    case kContextKv: return {TaskKind::context_kv, kNoLayer, false};
    case kBlock: return {TaskKind::draft_sample, kNoLayer, false};
    case kDraftX:
      switch (task.kind) {
        case TaskKind::draft_qkv_proj:
        case TaskKind::draft_o_proj: return draft_residual_before(layer);
        case TaskKind::draft_lm_head: return draft_residual_before(shape.draft.num_layers);
        case TaskKind::draft_norm:
          if (layer == kNoLayer) return draft_residual_before(shape.draft.num_layers);
          if (!(task.flags & kMlpNorm)) return draft_residual_before(layer);
          [[fallthrough]];
        default: return of(TaskKind::draft_o_proj);
      }
    case kDraftQ:
    case kDraftKv: return of(TaskKind::draft_qkv_proj);
    case kDraftAttn: return of(TaskKind::draft_attention);
    case kDraftAct: return of(TaskKind::draft_gate_up_proj);
    case kDraftLogits: return {TaskKind::draft_lm_head, kNoLayer, false};
    default: fail(ErrorCode::internal, "plan", "buffer ", buffer, " is read by ", task_kind_name(task.kind));
  }
}

uint32_t max_active_experts(const PlanShape& shape, uint32_t max_tokens) {
  return static_cast<uint32_t>(
      std::min<uint64_t>(shape.num_experts, uint64_t{max_tokens} * shape.experts_per_token));
}

uint32_t num_tiles(const PlanShape& shape, TaskKind kind, uint16_t layer_idx) {
  const PlanShape::Draft& draft = shape.draft;
  switch (kind) {
    case TaskKind::qkv_proj: return num_qkv_tiles(shape.layers[layer_idx]);
    case TaskKind::attention: return shape.layers[layer_idx].num_q_heads;
    case TaskKind::o_proj:
    case TaskKind::expert_down:
    case TaskKind::down_proj:
    case TaskKind::context_fc:
    case TaskKind::draft_o_proj:
    case TaskKind::draft_down_proj: return num_groups(shape.hidden_size);
    case TaskKind::router: return num_groups(shape.num_experts);
    case TaskKind::expert_gate_up: return num_groups(shape.expert_width);
    case TaskKind::gate_up_proj: return num_groups(shape.dense_width);
    case TaskKind::lm_head: return num_groups(shape.vocab_size);
    case TaskKind::draft_lm_head: return num_groups(draft.vocab_size);
    case TaskKind::context_kv: return draft.num_layers * 2 * draft.num_kv_heads;
    case TaskKind::draft_qkv_proj: return draft.num_q_heads + 2 * draft.num_kv_heads;
    case TaskKind::draft_attention: return draft.num_q_heads;
    case TaskKind::draft_gate_up_proj: return num_groups(draft.intermediate_size);
    case TaskKind::embed:
    case TaskKind::rms_norm:
    case TaskKind::select_experts:
    case TaskKind::sample:
    case TaskKind::context_norm:
    case TaskKind::draft_embed:
    case TaskKind::draft_norm:
    case TaskKind::draft_sample:
    case TaskKind::accept: return 1;
  }
  fail(ErrorCode::internal, "plan", "task kind ", static_cast<int>(kind), " has no tiles");
}

LayerConfig layer_config(const PlanShape::Layer& layer) {
  LayerConfig config;
  config.is_moe = layer.is_moe;
  config.num_q_heads = layer.num_q_heads;
  config.num_kv_heads = layer.num_kv_heads;
  config.qk_head_dim = layer.qk_head_dim;
  config.v_head_dim = layer.v_head_dim;
  config.rotary_dim = layer.rotary_dim;
  return config;
}

std::string task_name(const Plan& plan, uint32_t worker_idx, uint32_t task_idx) {
  const Task& task = plan.tasks(worker_idx)[task_idx];
  const bool known = static_cast<uint16_t>(task.kind) < kNumTaskKinds;
  const std::string layer = task.layer_idx == kNoLayer ? "" : concat(", layer ", task.layer_idx);
  return concat("worker ", worker_idx, " task ", task_idx, " (", known ? task_kind_name(task.kind) : "unknown kind",
                layer, ")");
}

}  // namespace mimo_rt
