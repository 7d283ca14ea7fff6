// The draft: context out of captured features, one pass over the block, and what happens to the drafts.
#include "core/numeric.h"
#include "engine/round.h"
#include "plan/buffers.h"
#include "ref/ops.h"
#include "ref/packed_access.h"

#include <algorithm>
#include <cmath>

namespace mimo_rt::ref {

constexpr uint32_t kLanes = kTileRows;

/// A head of q, k or v in a layer's packed matrix.
struct Ops::Head {
  enum class Part : uint8_t { q, k, v } part;
  uint32_t head_idx, first_row, num_dims;
};

void Ops::run_draft(const Task& task, const Step& step) {
  const bool is_in_layer = task.layer_idx != kNoLayer;
  const DraftLayerWeights* layer = is_in_layer ? &draft_->layer(task.layer_idx) : nullptr;
  const DraftConfig& config = draft_->config();
  const uint32_t num_rows = step.input->num_draft_rows;
  switch (task.kind) {
    case TaskKind::context_fc: return context_fc(task, step);
    case TaskKind::context_norm:
      return normalise_rows(task, step, step.input->num_context_rows, draft_->hidden_norm(),
                            config.rms_norm_eps);
    case TaskKind::context_kv: return context_kv(task, step);
    case TaskKind::draft_embed: return draft_embed(task, step);
    case TaskKind::draft_norm: return draft_norm(task, step);
    case TaskKind::draft_qkv_proj: return draft_qkv_proj(task, step);
    case TaskKind::draft_attention: return draft_attention(task, step);
    case TaskKind::draft_o_proj:
      return output_proj(task, step, layer->o_proj, config.num_q_heads * config.v_head_dim,
                         num_rows);
    case TaskKind::draft_gate_up_proj: return draft_gate_up_proj(task, step);
    case TaskKind::draft_down_proj:
      return output_proj(task, step, layer->down, config.intermediate_size, num_rows);
    case TaskKind::draft_lm_head: return draft_lm_head(task, step);
    case TaskKind::draft_sample: return draft_sample(task, step);
    default: return;
  }
}

/// Heads lie one after the other: those of q, of k, of v. `row` counts all of them.
Ops::Head Ops::head_at(uint32_t row) const {
  const DraftConfig& config = draft_->config();
  const uint32_t num_q = config.num_q_heads, num_kv = config.num_kv_heads;
  const uint32_t qk = config.qk_head_dim, v = config.v_head_dim;
  if (row < num_q) return {Head::Part::q, row, row * qk, qk};
  if (row < num_q + num_kv) return {Head::Part::k, row - num_q, row * qk, qk};
  const uint32_t head_idx = row - num_q - num_kv;
  return {Head::Part::v, head_idx, (num_q + num_kv) * qk + head_idx * v, v};
}

/// Rows [first_row, first_row + num_rows) for a task that consumes normalised ones: out of `input`, or made from it
/// when the norm is fused; padded to k elements.
Ops::Rows Ops::draft_consumer_rows(const Task& task, const Step& step, uint32_t first_row,
                                   uint32_t num_rows, uint32_t k) const {
  const float* weight =
      task.kind == TaskKind::context_kv      ? draft_->hidden_norm()
      : task.kind == TaskKind::draft_lm_head ? draft_->final_norm()
      : task.kind == TaskKind::draft_qkv_proj
          ? draft_->layer(task.layer_idx).attn_norm
          : draft_->layer(task.layer_idx).mlp_norm;
  Rows rows(uint64_t{num_rows} * k);
  for (uint32_t r = 0; r < num_rows; ++r) {
    double* out = rows.data() + uint64_t{r} * k;
    if (task.flags & kFusedNorm)
      normalise(step, task.input, first_row + r, weight, draft_->config().rms_norm_eps, out);
    else
      step.buffers->read(task.input, first_row + r, 0, config_.hidden_size, out);
  }
  return rows;
}

void Ops::draft_norm(const Task& task, const Step& step) {
  const float* weight = draft_->final_norm();
  if (task.layer_idx != kNoLayer) {
    const DraftLayerWeights& layer = draft_->layer(task.layer_idx);
    weight = (task.flags & kMlpNorm) ? layer.mlp_norm : layer.attn_norm;
  }
  normalise_rows(task, step, step.input->num_draft_rows, weight, draft_->config().rms_norm_eps);
}

/// [num_rows, head.num_dims]
Ops::Rows Ops::project_head(const PackedMatrix& matrix, const Head& head, const Rows& rows,
                            uint32_t num_rows) {
  Rows values(uint64_t{num_rows} * head.num_dims), y;
  for (uint32_t d = 0; d < head.num_dims; d += kLanes) {
    project(matrix, (head.first_row + d) / kLanes, rows, num_rows, y);
    for (uint32_t r = 0; r < num_rows; ++r)
      for (uint32_t i = 0; i < kLanes; ++i)
        values[r * head.num_dims + d + i] = y[r * kLanes + i];
  }
  return values;
}

/// Normalises, rotates or scales the values of one head at position `pos`, in place.
void Ops::finish_head(const Head& head, const DraftLayerWeights& layer, uint32_t pos,
                      double* values) const {
  const DraftConfig& config = draft_->config();
  if (head.part == Head::Part::v) {
    for (uint32_t d = 0; d < head.num_dims; ++d) values[d] *= config.value_scale;
    return;
  }
  if (const float* norm = head.part == Head::Part::q ? layer.q_norm : layer.k_norm) {
    double sum = 0.0;
    for (uint32_t d = 0; d < head.num_dims; ++d) sum += values[d] * values[d];
    const double factor = 1.0 / std::sqrt(sum / head.num_dims + config.rms_norm_eps);
    for (uint32_t d = 0; d < head.num_dims; ++d) values[d] *= factor * norm[d];
  }
  const uint32_t half = config.rotary_dim / 2;
  for (uint32_t d = 0; d < half; ++d) {
    const double angle = pos * std::pow(config.rope_theta, -2.0 * d / config.rotary_dim);
    const double a = values[d], b = values[d + half];
    values[d] = a * std::cos(angle) - b * std::sin(angle);
    values[d + half] = b * std::cos(angle) + a * std::sin(angle);
  }
}

void Ops::context_fc(const Task& task, const Step& step) {
  const PackedMatrix& matrix = draft_->fc();
  const uint32_t num_rows = step.input->num_context_rows;
  Rows rows(uint64_t{num_rows} * matrix.k);
  for (uint32_t r = 0; r < num_rows; ++r)
    step.kv->read_features(step.input->seq_idx[0], step.input->context_begin + r,
                           rows.data() + uint64_t{r} * matrix.k);
  for_each_tile(task, matrix, rows, num_rows, [&](uint32_t tile, uint32_t r, const double* y) {
    for (uint32_t i = 0; i < kLanes && tile * kLanes + i < config_.hidden_size; ++i)
      step.buffers->write(task.output, r, tile * kLanes + i, y[i]);
  });
}

void Ops::context_kv(const Task& task, const Step& step) {
  const DraftConfig& config = draft_->config();
  const uint32_t num_rows = step.input->num_context_rows;
  const uint32_t tiles_per_layer = 2 * config.num_kv_heads;
  const Rows rows = draft_consumer_rows(task, step, 0, num_rows, draft_->layer(0).qkv.k);
  for (uint32_t tile = task.tile_first; tile < task.tile_end; tile += task.tile_stride) {
    const uint32_t layer_idx = tile / tiles_per_layer;
    const DraftLayerWeights& layer = draft_->layer(layer_idx);
    const Head head = head_at(config.num_q_heads + tile % tiles_per_layer);
    Rows values = project_head(layer.qkv, head, rows, num_rows);
    for (uint32_t r = 0; r < num_rows; ++r) {
      const uint32_t pos = step.input->context_begin + r;
      double* row = values.data() + r * head.num_dims;
      finish_head(head, layer, pos, row);
      const auto part = head.part == Head::Part::k ? KeyValues::Part::k : KeyValues::Part::v;
      for (uint32_t d = 0; d < head.num_dims; ++d)
        step.kv->write(part, config_.num_layers + layer_idx, step.input->seq_idx[0], head.head_idx,
                       pos, d, row[d]);
    }
  }
}

void Ops::draft_embed(const Task& task, const Step& step) {
  const uint32_t num_tiles = task.tile_end * step.input->num_draft_rows;
  const auto anchor = static_cast<uint32_t>(step.input->round->block[0]);
  for (uint32_t t = task.tile_first; t < num_tiles; t += task.tile_stride)
    for (uint32_t i = 0; i < config_.hidden_size; ++i)
      step.buffers->write(task.output, t, i,
                          t ? double{bf16_to_f32(draft_->mask_embedding()[i])}
                            : packed_weight(weights_.embed(), anchor, i));
}

void Ops::draft_qkv_proj(const Task& task, const Step& step) {
  const DraftConfig& config = draft_->config();
  const DraftLayerWeights& layer = draft_->layer(task.layer_idx);
  const uint32_t num_rows = step.input->num_draft_rows;
  const Rows rows = draft_consumer_rows(task, step, 0, num_rows, layer.qkv.k);
  for (uint32_t tile = task.tile_first; tile < task.tile_end; tile += task.tile_stride) {
    const Head head = head_at(tile);
    Rows values = project_head(layer.qkv, head, rows, num_rows);
    const uint32_t v_begin =
        head.part == Head::Part::v ? config.num_kv_heads * config.qk_head_dim : 0;
    const uint16_t buffer = head.part == Head::Part::q ? task.output : task.output2;
    for (uint32_t r = 0; r < num_rows; ++r) {
      double* row = values.data() + r * head.num_dims;
      finish_head(head, layer, step.input->positions[0] + r, row);
      for (uint32_t d = 0; d < head.num_dims; ++d)
        step.buffers->write(buffer, r, v_begin + head.head_idx * head.num_dims + d, row[d]);
    }
  }
}

/// Row t sees context positions j < P with P + t - j < window, and all rows of the block.
void Ops::draft_attention(const Task& task, const Step& step) {
  const DraftConfig& config = draft_->config();
  const uint32_t qk = config.qk_head_dim, vd = config.v_head_dim;
  const uint32_t anchor = step.input->positions[0], window = config.window_tokens[task.layer_idx];
  const float* sinks = draft_->layer(task.layer_idx).sink_logits;
  const uint32_t num_tiles = task.tile_end * step.input->num_draft_rows;
  Rows q(qk), out(vd);
  for (uint32_t t = task.tile_first; t < num_tiles; t += task.tile_stride) {
    const uint32_t row = t / task.tile_end, share = t % task.tile_end;
    uint32_t first = 0;
    while (window && first < anchor && anchor + row - first >= window) ++first;
    const uint32_t num_context = anchor - first;
    const auto reader = [&](KeyValues::Part part, uint32_t kv_head) {
      const uint32_t dims = part == KeyValues::Part::k ? qk : vd;
      const uint32_t col = part == KeyValues::Part::k ? kv_head * qk
                                                      : config.num_kv_heads * qk + kv_head * vd;
      return [&, part, dims, col, first, num_context, kv_head](uint32_t key, double* values) {
        if (key < num_context)
          step.kv->read(part, config_.num_layers + task.layer_idx, step.input->seq_idx[0], kv_head,
                        first + key, values);
        else
          step.buffers->read(task.input2, key - num_context, col, dims, values);
      };
    };
    const uint32_t end = share_begin(share + 1, task.tile_end, config.num_q_heads);
    for (uint32_t q_head = share_begin(share, task.tile_end, config.num_q_heads); q_head < end; ++q_head) {
      const uint32_t kv_head = q_head / config.q_per_kv();
      step.buffers->read(task.input, row, q_head * qk, qk, q.data());
      attend_to({num_context + step.input->num_draft_rows, reader(KeyValues::Part::k, kv_head),
                 reader(KeyValues::Part::v, kv_head), sinks ? sinks + q_head : nullptr},
                q, out);
      for (uint32_t d = 0; d < vd; ++d)
        step.buffers->write(task.output, row, q_head * vd + d, out[d]);
    }
  }
}

void Ops::draft_gate_up_proj(const Task& task, const Step& step) {
  const DraftLayerWeights& layer = draft_->layer(task.layer_idx);
  const uint32_t num_rows = step.input->num_draft_rows;
  const Rows rows = draft_consumer_rows(task, step, 0, num_rows, layer.gate_up.k);
  for (uint32_t tile = task.tile_first; tile < task.tile_end; tile += task.tile_stride)
    gate_up(task, step, layer.gate_up, tile, rows, 0, num_rows,
            draft_->config().intermediate_size);
}

/// Rows 1.. of the block; row 0 is the anchor, which is known.
void Ops::draft_lm_head(const Task& task, const Step& step) {
  const PackedMatrix& matrix = draft_->lm_head();
  const uint32_t num_rows = std::max(step.input->num_draft_rows, 1u) - 1;
  const Rows rows = draft_consumer_rows(task, step, 1, num_rows, matrix.k);
  for_each_tile(task, matrix, rows, num_rows, [&](uint32_t tile, uint32_t r, const double* y) {
    for (uint32_t i = 0; i < kLanes; ++i)
      step.buffers->write(task.output, r, tile * kLanes + i, y[i]);
  });
}

void Ops::draft_sample(const Task& task, const Step& step) {
  const uint32_t num_tiles = task.tile_end * step.input->num_draft_rows;
  const uint64_t stride = step.plan->buffers()[task.input].cols;
  for (uint32_t t = task.tile_first; t < num_tiles; t += task.tile_stride)
    if (t > 0)
      propose_token(*step.input->round, t,
                    {step.draft_logits + (t - 1) * stride, step.plan->shape().draft.vocab_size,
                     draft_->vocab_ids()});
}

}  // namespace mimo_rt::ref
