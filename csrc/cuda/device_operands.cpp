#include "cuda/device_operands.h"

#include <algorithm>

#include "core/checks.h"
#include "cuda/attention.h"
#include "cuda/expert_mlp.h"
#include "cuda/projection.h"
#include "cuda/router.h"
#include "plan/kinds.h"

namespace mimo_rt::cuda {
namespace {

constexpr const char* kWhere = "cuda.OperandMaker";

template <typename Params>
TaskOperands pack_tokens(TaskBody body, const Params& params) {
  return pack_operands(body, params, RowCount::tokens, offsetof(Params, num_tokens));
}

}  // namespace

RouteTable OperandMaker::route(uint32_t layer_idx) const {
  RouteTable table = RouteTable::view(
      step<uint8_t>(layout_.arena + plan_.buffers()[kRoute].offset), config_.num_experts,
      plan_.options().max_tokens * config_.experts_per_token);
  table.num_active = step<uint32_t>(layout_.active_experts) + layer_idx;
  return table;
}

RouteEdge OperandMaker::route_edge(uint32_t layer_idx) const {
  const uint32_t counter = layout_.route_counters[layer_idx];
  if (counter == kNoCounter) return {};
  const uint64_t row_bytes = sizeof(TaggedWord) * layout_.route_words;
  return {step<TaggedWord>(layout_.route_rows + 2 * row_bytes * layer_idx), counter,
          plan_.options().max_tokens * config_.experts_per_token};
}

TaskOperands OperandMaker::make(const Task& task) const {
  const bool is_in_layer = task.layer_idx != kNoLayer;
  const CudaLayerWeights* layer = is_in_layer ? &weights_.layer(task.layer_idx) : nullptr;
  switch (task.kind) {
    case TaskKind::embed: return embed();
    case TaskKind::rms_norm: return rms_norm(task);
    case TaskKind::qkv_proj: return qkv_proj(task);
    case TaskKind::attention: return attention(task);
    case TaskKind::o_proj: return add_to_residual(task, layer->o_proj);
    case TaskKind::router: return router(task);
    case TaskKind::select_experts: return select_experts(task);
    case TaskKind::expert_gate_up: return expert_gate_up(task);
    case TaskKind::expert_down: return expert_down(task);
    case TaskKind::gate_up_proj: return gate_up_proj(task);
    case TaskKind::down_proj: return add_to_residual(task, layer->down);
    case TaskKind::lm_head: return lm_head(task);
    case TaskKind::sample: return sample();
    case TaskKind::accept: return accept();
    default: return make_draft(task);
  }
}

TaskOperands OperandMaker::embed() const {
  const CudaTable& table = weights_.embed();
  EmbedParams p;
  p.table = weight(table.offset);
  p.out = rows<uint16_t>(kX);
  p.step = step<StepTables>(layout_.tables);
  p.k = table.k;
  p.is_f32 = table.dtype == DType::f32;
  return pack_tokens(TaskBody::embed, p);
}

TaskOperands OperandMaker::rms_norm(const Task& task) const {
  uint64_t norm = weights_.final_norm();
  if (task.layer_idx != kNoLayer) {
    const CudaLayerWeights& layer = weights_.layer(task.layer_idx);
    norm = (task.flags & kMlpNorm) ? layer.mlp_norm : layer.attn_norm;
  }
  RmsNormParams p;
  p.x = rows<const uint16_t>(kX);
  p.weight = floats(norm);
  p.out = rows<uint16_t>(kH);
  p.eps = static_cast<float>(config_.rms_norm_eps);
  p.num_tokens = plan_.options().max_tokens;
  p.k = config_.hidden_size;
  check_rms_norm(p);
  return pack_tokens(TaskBody::rms_norm, p);
}

ProjectionParams OperandMaker::projection(const Task& task, const CudaDenseMatrix& matrix) const {
  ProjectionParams p;
  p.tiles = weight(matrix.offset);
  p.x = rows<const uint16_t>(task.input);
  p.num_tokens = plan_.options().max_tokens;
  p.rows = matrix.shape.rows;
  p.k = matrix.shape.k;
  p.format = matrix.shape.is_fp8() ? ProjectionFormat::fp8_e4m3 : ProjectionFormat::bf16;
  return p;
}

TaskOperands OperandMaker::qkv_proj(const Task& task) const {
  const uint32_t l = task.layer_idx;
  const CudaLayerWeights& layer = weights_.layer(l);
  const KvView kv = kv_.view(l, 0, device_.kv);
  const uint64_t row_pointers = 8 * uint64_t{l} * plan_.options().max_tokens;
  ProjectionParams p = projection(task, layer.qkv);
  p.store = ProjectionStore::qkv;
  p.qkv.tiles = step<const QkvTile>(layout_.qkv_tiles[l]);
  p.qkv.q = rows<uint16_t>(kQ);
  p.qkv.k_rows = step<uint16_t* const>(layout_.k_rows + row_pointers);
  p.qkv.v_rows = step<uint16_t* const>(layout_.v_rows + row_pointers);
  p.qkv.k_head_stride = kv.block_rows * kv.k_stride;
  p.qkv.v_head_stride = kv.block_rows * kv.v_stride;
  p.qkv.cos_sin = step<const float>(layout_.cos_sin[layout_.rotary_of_layer[l]]);
  p.qkv.qk_head_dim = layer.config.qk_head_dim;
  p.qkv.rotary_dim = layer.config.rotary_dim;
  p.qkv.value_scale = static_cast<float>(config_.value_scale);
  p.qkv.num_q_heads = layer.config.num_q_heads;
  check_projection(p);
  return pack_tokens(TaskBody::projection, p);
}

TaskOperands OperandMaker::attention(const Task& task) const {
  const uint32_t l = task.layer_idx;
  const CudaLayerWeights& layer = weights_.layer(l);
  AttendRowsParams p;
  p.call = attention_shape(layer.config, kv_.view(l, 0, device_.kv),
                           plan_.options().attention_split_keys, kv_.options().max_context);
  p.call.q = rows<const uint16_t>(kQ);
  p.call.out = rows<uint16_t>(kAttn);
  p.call.position = step<const uint32_t>(layout_.positions);
  if (layer.config.has_sink) p.call.sink_logits = floats(layer.sink_logits);
  p.call.partials = step<float>(layout_.partials);
  check_attention(p.call);
  MIMO_RT_CHECK(layer.config.q_per_kv() <= kMaxQPerKv, unsupported_shape, kWhere, "layer ", l,
                ": expected at most ", kMaxQPerKv, " q heads per kv head, got ",
                layer.config.q_per_kv());
  p.step = step<const StepTables>(layout_.tables);
  p.layer_idx = l;
  p.partial_floats = layout_.partial_floats;
  return pack_tokens(TaskBody::attention, p);
}

TaskOperands OperandMaker::add_to_residual(const Task& task, const CudaDenseMatrix& matrix) const {
  ProjectionParams p = projection(task, matrix);
  p.num_segments = num_segments();
  p.store = ProjectionStore::add_residual;
  p.num_columns = config_.hidden_size;
  p.out_bf16 = rows<uint16_t>(kX);
  p.capture = capture(task);
  check_projection(p);
  return pack_tokens(TaskBody::projection, p);
}

TaskOperands OperandMaker::gate_up_proj(const Task& task) const {
  ProjectionParams p = projection(task, weights_.layer(task.layer_idx).gate_up);
  p.store = ProjectionStore::gate_up;
  p.num_columns = p.rows / 2;
  p.out_bf16 = rows<uint16_t>(kAct);
  check_projection(p);
  return pack_tokens(TaskBody::gate_up, p);
}

TaskOperands OperandMaker::lm_head(const Task& task) const {
  ProjectionParams p = projection(task, weights_.lm_head());
  p.row_ids = step<const uint32_t>(layout_.logit_rows);
  p.num_tokens = plan_.options().max_logit_rows;
  p.num_columns = config_.vocab_size;
  p.out_f32 = rows<float>(kLogits);
  p.store = ProjectionStore::scores;
  p.sampled = step<const SampledRows>(layout_.sampled_rows);
  check_projection(p);
  return pack_operands(TaskBody::projection, p, RowCount::logit_rows,
                       offsetof(ProjectionParams, num_tokens));
}

TaskOperands OperandMaker::router(const Task& task) const {
  const CudaTable& table = weights_.layer(task.layer_idx).router;
  RouterLogitsParams p;
  p.weights = weight(table.offset);
  p.x = rows<const uint16_t>(kH);
  p.logits = rows<float>(kRouterLogits);
  p.format = table.dtype == DType::f32 ? RouterFormat::f32 : RouterFormat::bf16;
  p.num_tokens = plan_.options().max_tokens;
  p.num_experts = config_.num_experts;
  p.hidden_size = config_.hidden_size;
  check_router_logits(p);
  return pack_tokens(TaskBody::router, p);
}

TaskOperands OperandMaker::select_experts(const Task& task) const {
  SelectExpertsParams p;
  p.logits = rows<const float>(kRouterLogits);
  p.bias = floats(weights_.layer(task.layer_idx).router_bias);
  p.route = route(task.layer_idx);
  p.num_tokens = plan_.options().max_tokens;
  p.num_experts = config_.num_experts;
  p.experts_per_token = config_.experts_per_token;
  p.norm_topk_prob = config_.norm_topk_prob;
  p.routed_scaling_factor = static_cast<float>(config_.routed_scaling_factor);
  check_select_experts(p);
  const RouteEdge edge = route_edge(task.layer_idx);
  if (!edge.rows) return pack_tokens(TaskBody::select_experts, p);
  TaskOperands operands = pack_operands(TaskBody::publish_route, PublishRouteParams{p, p.route.num_active},
                                        RowCount::tokens, offsetof(SelectExpertsParams, num_tokens));
  operands.route = edge;
  return operands;
}

template <typename Params>
void OperandMaker::set_route(const Task& task, Params& p) const {
  p.route = route(task.layer_idx);
  p.num_tokens = plan_.options().max_tokens;
  p.max_slots = p.num_tokens * config_.experts_per_token;
  p.hidden_size = config_.hidden_size;
}

TaskOperands OperandMaker::expert_gate_up(const Task& task) const {
  const CudaExpertMatrices& matrices = weights_.layer(task.layer_idx).expert_gate_up;
  ExpertGateUpParams p;
  p.tiles = weight(matrices.offset);
  p.x = rows<const uint16_t>(kH);
  p.act = rows<uint16_t>(kAct);
  set_route(task, p);
  p.width = matrices.shape.rows / 2;
  check_expert_gate_up(p);
  TaskOperands operands = pack_tokens(TaskBody::expert_gate_up, p);
  operands.route = route_edge(task.layer_idx);
  return operands;
}

TaskOperands OperandMaker::expert_down(const Task& task) const {
  const CudaExpertMatrices& matrices = weights_.layer(task.layer_idx).expert_down;
  ExpertDownParams p;
  p.tiles = weight(matrices.offset);
  p.act = rows<const uint16_t>(kAct);
  p.residual = rows<uint16_t>(kX);
  set_route(task, p);
  p.width = matrices.shape.k;
  p.num_segments = num_segments();
  p.capture = capture(task);
  check_expert_down(p);
  TaskOperands operands = pack_tokens(TaskBody::expert_down, p);
  operands.route = route_edge(task.layer_idx);
  return operands;
}

/// Where a layer that the draft sees is stored once more.
CaptureOutput OperandMaker::capture(const Task& task) const {
  if (!(task.flags & kCapture)) return {};
  const auto slot = static_cast<uint32_t>(capture_index(plan_.shape(), task.layer_idx));
  return {step<uint16_t* const>(layout_.draft.captured_rows), slot * config_.hidden_size};
}

TaskOperands OperandMaker::sample() const {
  SampleRowsParams p;
  p.rows = step<const SampledRows>(layout_.sampled_rows);
  return pack_operands(TaskBody::sample, p, RowCount::sampled_rows, offsetof(SampleRowsParams, num_rows));
}

TaskOperands OperandMaker::accept() const {
  AcceptRoundParams p;
  p.round = step<RoundTables>(layout_.round);
  p.step = step<StepTables>(layout_.tables);
  p.rows = step<const SampledRows>(layout_.sampled_rows);
  p.arrived = step<uint32_t>(layout_.arrived_shares) + plan_.options().max_logit_rows;
  return pack_operands(TaskBody::accept, p, RowCount::fixed, 0);
}

}  // namespace mimo_rt::cuda
