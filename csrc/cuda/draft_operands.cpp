// The half of OperandMaker that has to do with a draft.
#include "core/checks.h"
#include "cuda/attention.h"
#include "cuda/device_operands.h"
#include "cuda/projection.h"

namespace mimo_rt::cuda {
namespace {

constexpr const char* kWhere = "cuda.OperandMaker";

template <typename Params>
TaskOperands pack_draft(TaskBody body, const Params& params) {
  return pack_operands(body, params, RowCount::draft_rows, offsetof(Params, num_tokens));
}

}  // namespace

TaskOperands OperandMaker::make_draft(const Task& task) const {
  const bool is_in_layer = task.layer_idx != kNoLayer;
  const CudaDraftLayerWeights* layer = is_in_layer ? &draft_->layer(task.layer_idx) : nullptr;
  switch (task.kind) {
    case TaskKind::context_fc: return context_fc(task);
    case TaskKind::context_norm: return context_norm(task);
    case TaskKind::context_kv:
    case TaskKind::draft_qkv_proj: return heads(task);
    case TaskKind::draft_embed: return draft_embed();
    case TaskKind::draft_norm: return draft_norm(task);
    case TaskKind::draft_attention: return draft_attention(task);
    case TaskKind::draft_o_proj: return draft_add_to_residual(task, layer->o_proj);
    case TaskKind::draft_gate_up_proj: return draft_gate_up_proj(task);
    case TaskKind::draft_down_proj: return draft_add_to_residual(task, layer->down);
    case TaskKind::draft_lm_head: return draft_lm_head(task);
    case TaskKind::draft_sample: return draft_sample();
    default: fail(ErrorCode::internal, kWhere, "task kind ", task_kind_name(task.kind), ": no operands");
  }
}

ProjectionParams OperandMaker::draft_projection(const Task& task, const CudaDenseMatrix& matrix,
                                                uint32_t num_rows) const {
  ProjectionParams p;
  p.tiles = draft_weight(matrix.offset);
  p.x = rows<const uint16_t>(task.input);
  p.num_tokens = num_rows;
  p.rows = matrix.shape.rows;
  p.k = matrix.shape.k;
  p.format = matrix.shape.is_fp8() ? ProjectionFormat::fp8_e4m3 : ProjectionFormat::bf16;
  return p;
}

TaskOperands OperandMaker::context_fc(const Task& task) const {
  const FeatureRing features = kv_.sequence(0, device_.kv).features;  // any, see TaskOperands::reads_features
  ProjectionParams p = draft_projection(task, draft_->fc(), plan_.options().max_context_rows);
  p.x = {features.rows, features.width};
  p.row_ids = step<const uint32_t>(layout_.draft.context_ids);
  p.store = ProjectionStore::bf16;
  p.num_columns = config_.hidden_size;
  p.out_bf16 = rows<uint16_t>(task.output);
  check_projection(p);
  TaskOperands operands = pack_operands(TaskBody::projection, p, RowCount::context_rows,
                                        offsetof(ProjectionParams, num_tokens));
  operands.reads_features = 1;
  return operands;
}

RmsNormParams OperandMaker::draft_rms_norm(const Task& task, uint64_t weight,
                                           uint32_t num_rows) const {
  RmsNormParams p;
  p.x = rows<const uint16_t>(task.input);
  p.weight = draft_floats(weight);
  p.out = rows<uint16_t>(task.output);
  p.eps = static_cast<float>(draft_->config().rms_norm_eps);
  p.num_tokens = num_rows;
  p.k = config_.hidden_size;
  check_rms_norm(p);
  return p;
}

TaskOperands OperandMaker::context_norm(const Task& task) const {
  ContextNormParams p;
  p.norm = draft_rms_norm(task, draft_->hidden_norm(), plan_.options().max_context_rows);
  p.step = step<const StepTables>(layout_.tables);
  return pack_operands(TaskBody::context_norm, p, RowCount::context_rows,
                       offsetof(ContextNormParams, norm) + offsetof(RmsNormParams, num_tokens));
}

TaskOperands OperandMaker::draft_norm(const Task& task) const {
  uint64_t norm = draft_->final_norm();
  if (task.layer_idx != kNoLayer) {
    const CudaDraftLayerWeights& layer = draft_->layer(task.layer_idx);
    norm = (task.flags & kMlpNorm) ? layer.mlp_norm : layer.attn_norm;
  }
  return pack_draft(TaskBody::rms_norm, draft_rms_norm(task, norm, draft_->config().block_size));
}

TaskOperands OperandMaker::heads(const Task& task) const {
  const bool is_context = task.kind == TaskKind::context_kv;
  const DraftLayout& layout = layout_.draft;
  HeadsParams p;
  if (is_context) {
    p.projection = draft_projection(task, draft_->context_kv(), plan_.options().max_context_rows);
    p.layers = step<const HeadLayer>(layout.context_layers);
  } else {
    p.projection =
        draft_projection(task, draft_->layer(task.layer_idx).qkv, draft_->config().block_size);
    p.layers = step<const HeadLayer>(layout.block_layers) + task.layer_idx;
  }
  p.projection.num_columns = p.projection.rows;
  p.projection.out_f32 = {step<float>(is_context ? layout.context_heads : layout.block_heads),
                          p.projection.rows};
  p.shape = step<const HeadShape>(is_context ? layout.context_shape : layout.block_shape);
  check_projection(p.projection);
  return pack_operands(TaskBody::heads, p, is_context ? RowCount::context_rows : RowCount::draft_rows,
                       offsetof(HeadsParams, projection) + offsetof(ProjectionParams, num_tokens));
}

TaskOperands OperandMaker::draft_embed() const {
  const CudaTable& table = weights_.embed();
  DraftEmbedParams p;
  p.embed.table = weight(table.offset);
  p.embed.out = rows<uint16_t>(kDraftX);
  p.embed.step = step<StepTables>(layout_.tables);
  p.embed.k = table.k;
  p.embed.is_f32 = table.dtype == DType::f32;
  p.mask = reinterpret_cast<const uint16_t*>(draft_weight(draft_->mask_embedding()));
  return pack_operands(TaskBody::draft_embed, p, RowCount::draft_rows,
                       offsetof(DraftEmbedParams, embed) + offsetof(EmbedParams, num_tokens));
}

TaskOperands OperandMaker::draft_attention(const Task& task) const {
  const DraftConfig& config = draft_->config();
  const DraftLayout& layout = layout_.draft;
  AttendRowsParams p;
  p.call = draft_attention_shape(config, kv_, plan_.options().attention_split_keys, task.layer_idx, device_.kv);
  p.call.q = rows<const uint16_t>(kDraftQ);
  p.call.out = rows<uint16_t>(kDraftAttn);
  p.call.position = step<const uint32_t>(layout_.positions);
  if (config.has_sink) p.call.sink_logits = draft_floats(draft_->layer(task.layer_idx).sink_logits);
  p.call.partials = step<float>(layout.partials);
  check_attention(p.call);
  MIMO_RT_CHECK(config.q_per_kv() <= kMaxQPerKv, unsupported_shape, kWhere, "draft: expected at most ",
                kMaxQPerKv, " q heads per kv head, got ", config.q_per_kv());
  p.step = step<const StepTables>(layout_.tables);
  p.layer_idx = kv_.num_target_layers() + task.layer_idx;
  p.partial_floats = layout.partial_floats;
  return pack_draft(TaskBody::attention, p);
}

TaskOperands OperandMaker::draft_add_to_residual(const Task& task,
                                                 const CudaDenseMatrix& matrix) const {
  ProjectionParams p = draft_projection(task, matrix, draft_->config().block_size);
  p.store = ProjectionStore::add_residual;
  p.num_columns = config_.hidden_size;
  p.out_bf16 = rows<uint16_t>(kDraftX);
  check_projection(p);
  return pack_draft(TaskBody::projection, p);
}

TaskOperands OperandMaker::draft_gate_up_proj(const Task& task) const {
  ProjectionParams p =
      draft_projection(task, draft_->layer(task.layer_idx).gate_up, draft_->config().block_size);
  p.store = ProjectionStore::gate_up;
  p.num_columns = draft_->config().intermediate_size;
  p.out_bf16 = rows<uint16_t>(kDraftAct);
  check_projection(p);
  return pack_draft(TaskBody::gate_up, p);
}

TaskOperands OperandMaker::draft_lm_head(const Task& task) const {
  const CudaDenseMatrix* own = draft_->lm_head();
  ProjectionParams p =
      draft_projection(task, own ? *own : weights_.lm_head(), draft_->config().block_size - 1);
  if (!own) p.tiles = weight(weights_.lm_head().offset);
  p.x.data += p.x.stride;  // the anchor's row has no draft
  p.num_columns = plan_.shape().draft.vocab_size;
  p.out_f32 = rows<float>(kDraftLogits);
  p.store = ProjectionStore::scores;
  p.sampled = step<const SampledRows>(layout_.draft.sampled_rows);
  check_projection(p);
  return pack_operands(TaskBody::projection, p, RowCount::draft_logit_rows,
                       offsetof(ProjectionParams, num_tokens));
}

TaskOperands OperandMaker::draft_sample() const {
  DraftSampleParams p;
  p.sample = step<const SampleParams>(layout_.draft.sample);
  return pack_operands(TaskBody::draft_sample, p, RowCount::draft_rows,
                       offsetof(DraftSampleParams, num_rows));
}

}  // namespace mimo_rt::cuda
