// Ops on whole rows, and the dispatch from a task's kind to its op.
#include "core/numeric.h"
#include "cpu/ops_linear.h"
#include "engine/round.h"
#include "plan/buffers.h"

#include <cstring>

namespace mimo_rt::cpu {
namespace {

/// One row of the embedding: the 16-row group of a BF16 matrix holds element pairs (2j, 2j + 1) of
/// all rows side by side, that of an F32 matrix elements.
void gather_row(const PackedMatrix& matrix, uint32_t row, uint32_t num_elements, bf16_t* out) {
  const uint8_t* words = matrix.row_group(row / kTileRows) + row % kTileRows * 4;
  if (matrix.format == PackedFormat::bf16) {
    for (uint32_t k = 0; k < num_elements; k += 2)
      std::memcpy(out + k, words + uint64_t{k} / 2 * 64,
                  sizeof(bf16_t) * std::min(2u, num_elements - k));
    return;
  }
  // The residual stream is BF16: what enters it is rounded as every later sum is. The exact
  // reference keeps the stored values, as an F32 evaluation of the checkpoint does.
  for (uint32_t k = 0; k < num_elements; ++k) {
    float value;
    std::memcpy(&value, words + uint64_t{k} * 64, sizeof value);
    out[k] = f32_to_bf16(value);
  }
}

void normalise_row(Worker& worker, const float* weight, uint32_t token, bf16_t* out) {
  worker.kernels.rms_norm(worker.step.plan->bf16_row(kX, token), weight,
                          static_cast<float>(worker.config.rms_norm_eps),
                          worker.config.hidden_size, out);
}

const float* norm_weight(const Worker& worker, uint16_t layer_idx, bool is_mlp) {
  if (layer_idx == kNoLayer) return worker.weights.final_norm();
  const LayerWeights& layer = worker.weights.layer(layer_idx);
  return is_mlp ? layer.mlp_norm : layer.attn_norm;
}

}  // namespace

void run_task(const Task& task, Worker& worker) {
  switch (task.kind) {
    case TaskKind::embed: return op_embed(task, worker);
    case TaskKind::rms_norm: return op_rms_norm(task, worker);
    case TaskKind::qkv_proj: return op_qkv_proj(task, worker);
    case TaskKind::attention: return op_attention(task, worker);
    case TaskKind::o_proj:
    case TaskKind::down_proj:
    case TaskKind::draft_o_proj:
    case TaskKind::draft_down_proj: return op_output_proj(task, worker);
    case TaskKind::router:
    case TaskKind::draft_lm_head: return op_logits(task, worker);
    case TaskKind::lm_head: return op_lm_head(task, worker);
    case TaskKind::select_experts: return op_select_experts(task, worker);
    case TaskKind::expert_gate_up: return op_expert_gate_up(task, worker);
    case TaskKind::expert_down: return op_expert_down(task, worker);
    case TaskKind::gate_up_proj:
    case TaskKind::draft_gate_up_proj: return op_gate_up_proj(task, worker);
    case TaskKind::sample: return op_sample(task, worker);
    case TaskKind::context_fc: return op_context_fc(task, worker);
    case TaskKind::context_norm: return op_context_norm(task, worker);
    case TaskKind::context_kv: return op_context_kv(task, worker);
    case TaskKind::draft_embed: return op_draft_embed(task, worker);
    case TaskKind::draft_norm: return op_draft_norm(task, worker);
    case TaskKind::draft_qkv_proj: return op_draft_qkv_proj(task, worker);
    case TaskKind::draft_attention: return op_draft_attention(task, worker);
    case TaskKind::draft_sample: return op_draft_sample(task, worker);
    case TaskKind::accept: return op_accept(task, worker);
  }
}

void gather_embedding(const Worker& worker, int32_t token_id, bf16_t* out) {
  gather_row(worker.weights.embed(), static_cast<uint32_t>(token_id), worker.config.hidden_size,
             out);
}

void op_embed(const Task& task, Worker& worker) {
  const StepInput& input = *worker.step.input;
  const int32_t* ids = (task.flags & kFromBlock) ? input.round->block.data() : input.token_ids;
  const uint64_t num_tiles = uint64_t{task.tile_end} * input.num_tokens;
  for (uint64_t t = task.tile_first; t < num_tiles; t += task.tile_stride) {
    const uint32_t token = static_cast<uint32_t>(t);
    gather_embedding(worker, ids[token], worker.step.plan->bf16_row(task.output, token));
  }
}

void op_rms_norm(const Task& task, Worker& worker) {
  const float* weight = norm_weight(worker, task.layer_idx, task.flags & kMlpNorm);
  const uint64_t num_tiles = uint64_t{task.tile_end} * worker.step.input->num_tokens;
  for (uint64_t t = task.tile_first; t < num_tiles; t += task.tile_stride) {
    const uint32_t token = static_cast<uint32_t>(t);
    normalise_row(worker, weight, token, worker.step.plan->bf16_row(task.output, token));
  }
}

LinearInput consumer_rows(const Task& task, Worker& worker, const uint32_t* row_ids,
                          uint32_t num_rows) {
  const PlanState& plan = *worker.step.plan;
  const uint32_t hidden = worker.config.hidden_size;
  if (!(task.flags & kFusedNorm))
    return {plan.bf16_row(task.input, 0), plan.stride(task.input), row_ids, num_rows, hidden};

  // Rows keep their token's index, so that row_ids serve both cases. Router and experts of a layer
  // read the same rows: x does not change between them.
  auto* rows = reinterpret_cast<bf16_t*>(worker.normalised.data());
  const bool is_mlp = task.kind != TaskKind::qkv_proj && task.kind != TaskKind::lm_head;
  const Worker::NormKey key{worker.step.number, task.layer_idx, is_mlp};
  if (worker.normalised_key != key) {
    const float* weight = norm_weight(worker, task.layer_idx, is_mlp);
    const bool is_head = task.kind == TaskKind::lm_head;  // only there most rows may be unused
    const uint32_t count = is_head ? num_rows : worker.step.input->num_tokens;
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t token = is_head ? row_ids[i] : i;
      normalise_row(worker, weight, token, rows + uint64_t{token} * hidden);
    }
    worker.normalised_key = key;
  }
  return {rows, hidden, row_ids, num_rows, hidden};
}

void op_sample(const Task& task, Worker& worker) {
  if (task.tile_first != 0) return;  // share 0 does all
  const StepInput& input = *worker.step.input;
  const PlanState& plan = *worker.step.plan;
  if (!input.sample) return;
  for (uint32_t r = 0; r < input.num_logit_rows; ++r) {
    if (skips_row(input, r, worker.step.output->sampled)) continue;
    SampleResult& result = worker.step.output->sampled[r];
    if (input.wants_logits())
      sample_token({plan.f32_row(kLogits, r), worker.config.vocab_size}, input.sample[r], result);
    else
      sample_token(best_of_row(worker, r).row(), input.sample[r], result);
  }
}

}  // namespace mimo_rt::cpu
