// Ops on whole rows: embedding, RMSNorm, sampling, and the dispatch from a task's kind to its op.
#include "core/numeric.h"
#include "engine/round.h"
#include "plan/buffers.h"
#include "ref/ops.h"
#include "ref/packed_access.h"

#include <cmath>

namespace mimo_rt::ref {

void Ops::run(const Task& task, const Step& step) {
  const bool is_sampling = task.kind == TaskKind::sample || task.kind == TaskKind::accept;
  if (is_sampling && task.tile_first != 0) return;  // share 0 does all
  if (task.kind == TaskKind::accept)
    return accept_round(*step.input->round, {step.output->logits, step.output->logits_stride});
  if (task.kind >= TaskKind::context_fc) return run_draft(task, step);
  const bool is_in_layer = task.layer_idx != kNoLayer;
  const LayerWeights* layer = is_in_layer ? &weights_.layer(task.layer_idx) : nullptr;
  switch (task.kind) {
    case TaskKind::embed: return embed(task, step);
    case TaskKind::rms_norm: return rms_norm(task, step);
    case TaskKind::qkv_proj: return qkv_proj(task, step);
    case TaskKind::attention: return attention(task, step);
    case TaskKind::o_proj: {
      const LayerConfig& config = config_.layers[task.layer_idx];
      return output_proj(task, step, layer->o_proj, config.num_q_heads * config.v_head_dim,
                         step.input->num_tokens);
    }
    case TaskKind::router: return logits(task, step, layer->router);
    case TaskKind::select_experts: return select_experts(task, step);
    case TaskKind::expert_gate_up: return expert_gate_up(task, step);
    case TaskKind::expert_down: return expert_down(task, step);
    case TaskKind::gate_up_proj: return gate_up_proj(task, step);
    case TaskKind::down_proj:
      return output_proj(task, step, layer->down, config_.intermediate_size,
                         step.input->num_tokens);
    case TaskKind::lm_head: return logits(task, step, weights_.lm_head());
    case TaskKind::sample: return sample(task, step);
    default: return;
  }
}

double Ops::round_activation(double value) const {
  return exact_ ? value : bf16_to_f32(f32_to_bf16(static_cast<float>(value)));
}

void Ops::embed(const Task& task, const Step& step) {
  const int32_t* ids =
      (task.flags & kFromBlock) ? step.input->round->block.data() : step.input->token_ids;
  const uint32_t num_tiles = task.tile_end * step.input->num_tokens;
  for (uint32_t t = task.tile_first; t < num_tiles; t += task.tile_stride)
    for (uint32_t i = 0; i < config_.hidden_size; ++i) {
      const uint32_t token_id = static_cast<uint32_t>(ids[t]);
      // An F32 table: `write` rounds to the residual stream's BF16, except in the exact mode.
      step.buffers->write(task.output, t, i, packed_weight(weights_.embed(), token_id, i));
    }
}

void Ops::normalise(const Step& step, uint16_t buffer, uint32_t row, const float* weight,
                    double eps, double* out) const {
  const uint32_t n = config_.hidden_size;
  step.buffers->read(buffer, row, 0, n, out);
  double sum = 0.0;
  for (uint32_t i = 0; i < n; ++i) sum += out[i] * out[i];
  const double factor = 1.0 / std::sqrt(sum / n + eps);
  for (uint32_t i = 0; i < n; ++i) out[i] = round_activation(out[i] * factor * weight[i]);
}

void Ops::rms_norm(const Task& task, const Step& step) {
  const float* weight = weights_.final_norm();
  if (task.layer_idx != kNoLayer) {
    const LayerWeights& layer = weights_.layer(task.layer_idx);
    weight = (task.flags & kMlpNorm) ? layer.mlp_norm : layer.attn_norm;
  }
  normalise_rows(task, step, step.input->num_tokens, weight, config_.rms_norm_eps);
}

/// A norm of its own, of any rows.
void Ops::normalise_rows(const Task& task, const Step& step, uint32_t num_rows, const float* weight,
                         double eps) const {
  Rows row(config_.hidden_size);
  const uint32_t num_tiles = task.tile_end * num_rows;
  for (uint32_t t = task.tile_first; t < num_tiles; t += task.tile_stride) {
    normalise(step, task.input, t, weight, eps, row.data());
    for (uint32_t i = 0; i < config_.hidden_size; ++i)
      step.buffers->write(task.output, t, i, row[i]);
  }
}

/// Normalised rows for a task that consumes them: out of h, or made from x when the norm is fused.
Ops::Rows Ops::consumer_rows(const Task& task, const Step& step, const uint32_t* row_ids,
                             uint32_t num_rows, uint32_t k) const {
  const float* weight = weights_.final_norm();
  if (task.layer_idx != kNoLayer) {
    const LayerWeights& layer = weights_.layer(task.layer_idx);
    weight = task.kind == TaskKind::qkv_proj ? layer.attn_norm : layer.mlp_norm;
  }
  Rows rows(uint64_t{num_rows} * k);
  for (uint32_t r = 0; r < num_rows; ++r) {
    const uint32_t row = row_ids ? row_ids[r] : r;
    double* out = rows.data() + uint64_t{r} * k;
    if (task.flags & kFusedNorm)
      normalise(step, kX, row, weight, config_.rms_norm_eps, out);
    else
      step.buffers->read(task.input, row, 0, config_.hidden_size, out);
  }
  return rows;
}

void Ops::sample(const Task&, const Step& step) {
  if (!step.input->sample) return;
  for (uint32_t r = 0; r < step.input->num_logit_rows; ++r) {
    if (skips_row(*step.input, r, step.output->sampled)) continue;
    sample_token({step.output->logits + uint64_t{r} * step.output->logits_stride, config_.vocab_size},
                 step.input->sample[r], step.output->sampled[r]);
  }
}

}  // namespace mimo_rt::ref
