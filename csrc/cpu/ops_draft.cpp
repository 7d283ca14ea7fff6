// The ops of a draft that no op of the target resembles: context out of captured features, the block's heads and its
// attention, and what happens to the drafts.
#include "core/numeric.h"
#include "cpu/ops_attention.h"
#include "cpu/ops_linear.h"
#include "engine/round.h"
#include "plan/buffers.h"

#include <cmath>
#include <cstring>

namespace mimo_rt::cpu {
namespace {

enum class Part : uint8_t { q, k, v };

/// A head of a layer's packed qkv: whole groups of 16 rows.
struct Head {
  Part part;
  uint32_t head_idx;  ///< among those of its part
  uint32_t group_begin, num_groups;
};

/// `row` counts all q heads, then all k heads, then all v heads.
Head head_at(const DraftConfig& config, uint32_t row) {
  const uint32_t num_q = config.num_q_heads, num_kv = config.num_kv_heads;
  const uint32_t qk_groups = config.qk_head_dim / kTileRows;
  const uint32_t v_groups = config.v_head_dim / kTileRows;
  if (row < num_q) return {Part::q, row, row * qk_groups, qk_groups};
  if (row < num_q + num_kv) return {Part::k, row - num_q, row * qk_groups, qk_groups};
  const uint32_t head_idx = row - num_q - num_kv;
  return {Part::v, head_idx, (num_q + num_kv) * qk_groups + head_idx * v_groups, v_groups};
}

/// Even, because multiply_groups never parts two groups that could be gate and up.
uint32_t floats_per_row(const DraftConfig& config) {
  return round_up(std::max(config.qk_head_dim, config.v_head_dim), 2 * kTileRows);
}

/// Rows whose results for one whole head fit the scratch.
uint32_t rows_per_block(const DraftConfig& config) {
  return std::min(kMaxBlockTokens, kResultFloats / floats_per_row(config));
}

/// Normalises, rotates or scales the results of one head and one row, and rounds them once.
void store_head(const DraftConfig& config, const DraftLayerWeights& weights, Part part,
                const float* y, const float* cos_sin, bf16_t* out) {
  if (part == Part::v) {
    const auto scale = static_cast<float>(config.value_scale);
    for (uint32_t d = 0; d < config.v_head_dim; ++d) out[d] = f32_to_bf16(scale * y[d]);
    return;
  }
  const float* norm = part == Part::q ? weights.q_norm : weights.k_norm;
  float factor = 1.0f;
  if (norm) {
    float sum = 0.0f;
    for (uint32_t d = 0; d < config.qk_head_dim; ++d) sum += y[d] * y[d];
    factor = 1.0f / std::sqrt(sum / static_cast<float>(config.qk_head_dim) +
                              static_cast<float>(config.rms_norm_eps));
  }
  const auto value = [&](uint32_t d) { return norm ? y[d] * factor * norm[d] : y[d]; };
  const uint32_t half = config.rotary_dim / 2;
  for (uint32_t d = 0; d < half; ++d) {
    const float a = value(d), b = value(d + half);
    const float cosine = cos_sin[2 * d], sine = cos_sin[2 * d + 1];
    out[d] = f32_to_bf16(a * cosine - b * sine);
    out[d + half] = f32_to_bf16(b * cosine + a * sine);
  }
  for (uint32_t d = config.rotary_dim; d < config.qk_head_dim; ++d) out[d] = f32_to_bf16(value(d));
}

void normalise_row(Worker& worker, const bf16_t* row, const float* weight, bf16_t* out) {
  const DraftConfig& config = worker.draft->config();
  worker.kernels.rms_norm(row, weight, static_cast<float>(config.rms_norm_eps), config.hidden_size,
                          out);
}

/// Rows [first_row, first_row + num_rows) of the input, normalised in the worker's scratch when the norm is fused.
LinearInput normalised_rows(const Task& task, Worker& worker, uint32_t first_row, uint32_t num_rows,
                            const float* weight) {
  const PlanState& plan = *worker.step.plan;
  const uint32_t hidden = worker.config.hidden_size;
  if (!(task.flags & kFusedNorm))
    return {plan.bf16_row(task.input, first_row), plan.stride(task.input), nullptr, num_rows, hidden};
  auto* rows = reinterpret_cast<bf16_t*>(worker.normalised.data());
  for (uint32_t r = 0; r < num_rows; ++r)
    normalise_row(worker, plan.bf16_row(task.input, first_row + r), weight,
                  rows + uint64_t{r} * hidden);
  worker.normalised_key = {};  // what the target's fused norm left there is gone
  return {rows, hidden, nullptr, num_rows, hidden};
}

/// A norm of its own.
void normalise_tiles(const Task& task, Worker& worker, uint32_t num_rows, const float* weight) {
  const PlanState& plan = *worker.step.plan;
  const uint64_t num_tiles = uint64_t{task.tile_end} * num_rows;
  for (uint64_t t = task.tile_first; t < num_tiles; t += task.tile_stride) {
    const auto row = static_cast<uint32_t>(t);
    normalise_row(worker, plan.bf16_row(task.input, row), weight, plan.bf16_row(task.output, row));
  }
}

/// The norm of a draft layer, or the last one.
const float* norm_weight(const Worker& worker, uint16_t layer_idx, bool is_mlp) {
  if (layer_idx == kNoLayer) return worker.draft->final_norm();
  const DraftLayerWeights& layer = worker.draft->layer(layer_idx);
  return is_mlp ? layer.mlp_norm : layer.attn_norm;
}

}  // namespace

bool draft_heads_fit(const DraftConfig& config) {
  return rows_per_block(config) >= config.block_size;
}

ByteRange first_head_weights(const Task& task, const Worker& worker) {
  const DraftConfig& config = worker.draft->config();
  const PackedMatrix* matrix = nullptr;
  uint32_t row = task.tile_first;
  if (task.kind == TaskKind::context_kv) {
    const uint32_t tiles_per_layer = 2 * config.num_kv_heads;
    matrix = &worker.draft->layer(task.tile_first / tiles_per_layer).qkv;
    row = config.num_q_heads + task.tile_first % tiles_per_layer;
  } else {
    matrix = &worker.draft->layer(task.layer_idx).qkv;
  }
  const Head head = head_at(config, row);
  const uint8_t* begin = matrix->row_group(head.group_begin);
  const uint64_t bytes = head.num_groups * row_group_bytes(matrix->format, matrix->k);
  return {begin, begin + std::min(bytes, kMaxPrefetchBytes)};
}

LinearInput draft_consumer_rows(const Task& task, Worker& worker, uint32_t first_row) {
  const uint32_t num_rows = worker.step.input->num_draft_rows;
  const float* weight =
      norm_weight(worker, task.layer_idx, task.kind == TaskKind::draft_gate_up_proj);
  return normalised_rows(task, worker, first_row, num_rows ? num_rows - first_row : 0, weight);
}

void op_context_fc(const Task& task, Worker& worker) {
  const PlanState& plan = *worker.step.plan;
  const StepInput& input = *worker.step.input;
  if (!input.num_context_rows) return;
  const uint32_t hidden = worker.config.hidden_size, seq = input.seq_idx[0];
  const auto width = static_cast<uint32_t>(plan.plan.shape().draft.target_layer_ids.size()) * hidden;
  const bf16_t* features = worker.step.cache->feature_row(seq, 0);
  const auto stride = static_cast<uint32_t>(worker.step.cache->feature_row(seq, 1) - features);
  const LinearInput rows{features, stride, plan.draft->feature_rows.data(), input.num_context_rows,
                         width};
  multiply_tiles(worker, task, worker.draft->fc(), 1, rows, [&](const LinearResults& results) {
    const uint32_t col = results.first_group * kTileRows;
    const uint32_t num_cols = std::min(results.stride, hidden - col);
    for (uint32_t i = 0; i < results.num_rows; ++i) {
      bf16_t* out = plan.bf16_row(task.output, results.first_row + i) + col;
      for (uint32_t c = 0; c < num_cols; ++c) out[c] = f32_to_bf16(results.row(i)[c]);
    }
  });
}

void op_context_norm(const Task& task, Worker& worker) {
  normalise_tiles(task, worker, worker.step.input->num_context_rows, worker.draft->hidden_norm());
}

void op_context_kv(const Task& task, Worker& worker) {
  const PlanState& plan = *worker.step.plan;
  const StepInput& input = *worker.step.input;
  const DraftConfig& config = worker.draft->config();
  const uint32_t tiles_per_layer = 2 * config.num_kv_heads, max_rows = rows_per_block(config);
  if (task.tile_first >= task.tile_end) return;
  for (uint32_t row = 0; row < input.num_context_rows; row += max_rows) {
    const uint32_t num_rows = std::min(max_rows, input.num_context_rows - row);
    const LinearInput rows =
        normalised_rows(task, worker, row, num_rows, worker.draft->hidden_norm());
    const PackedMatrix* prepared_for = nullptr;
    for (uint64_t tile = task.tile_first; tile < task.tile_end; tile += task.tile_stride) {
      const uint32_t layer_idx = static_cast<uint32_t>(tile) / tiles_per_layer;
      const uint32_t place = static_cast<uint32_t>(tile) % tiles_per_layer;
      const Head head = head_at(config, config.num_q_heads + place);
      const DraftLayerWeights& layer = worker.draft->layer(layer_idx);
      if (!prepared_for || prepared_for->format != layer.qkv.format) {
        prepared_for = &layer.qkv;
        prepare_rows(worker, layer.qkv, rows, 0, num_rows);
      }
      const uint32_t cache_layer = worker.config.num_layers + layer_idx;
      const auto store = [&](const LinearResults& results) {
        for (uint32_t i = 0; i < num_rows; ++i) {
          const uint32_t pos = input.context_begin + row + i;
          KvCache& cache = *worker.step.cache;
          bf16_t* out = head.part == Part::k
                            ? cache.k_row(cache_layer, input.seq_idx[0], head.head_idx, pos)
                            : cache.v_row(cache_layer, input.seq_idx[0], head.head_idx, pos);
          store_head(config, layer, head.part, results.row(i),
                     plan.draft->context_rope.row(row + i), out);
        }
      };
      multiply_groups(worker, layer.qkv, 0, num_rows, head.group_begin,
                      head.group_begin + head.num_groups, store);
    }
  }
}

void op_draft_embed(const Task& task, Worker& worker) {
  const StepInput& input = *worker.step.input;
  const uint64_t num_tiles = uint64_t{task.tile_end} * input.num_draft_rows;
  for (uint64_t t = task.tile_first; t < num_tiles; t += task.tile_stride) {
    bf16_t* x = worker.step.plan->bf16_row(task.output, static_cast<uint32_t>(t));
    if (t == 0)
      gather_embedding(worker, input.round->block[0], x);
    else
      std::memcpy(x, worker.draft->mask_embedding(), sizeof(bf16_t) * worker.config.hidden_size);
  }
}

void op_draft_norm(const Task& task, Worker& worker) {
  normalise_tiles(task, worker, worker.step.input->num_draft_rows,
                  norm_weight(worker, task.layer_idx, task.flags & kMlpNorm));
}

void op_draft_qkv_proj(const Task& task, Worker& worker) {
  const PlanState& plan = *worker.step.plan;
  const DraftConfig& config = worker.draft->config();
  const DraftLayerWeights& layer = worker.draft->layer(task.layer_idx);
  const uint32_t num_rows = worker.step.input->num_draft_rows;
  if (!num_rows || task.tile_first >= task.tile_end) return;
  const LinearInput rows = draft_consumer_rows(task, worker, 0);
  prepare_rows(worker, layer.qkv, rows, 0, num_rows);
  for (uint64_t tile = task.tile_first; tile < task.tile_end; tile += task.tile_stride) {
    const Head head = head_at(config, static_cast<uint32_t>(tile));
    const bool is_v = head.part == Part::v;
    const uint32_t v_begin = is_v ? config.num_kv_heads * config.qk_head_dim : 0;
    const uint32_t head_dim = is_v ? config.v_head_dim : config.qk_head_dim;
    const uint32_t col = v_begin + head.head_idx * head_dim;
    const uint16_t buffer = head.part == Part::q ? task.output : task.output2;
    const auto store = [&](const LinearResults& results) {
      for (uint32_t i = 0; i < num_rows; ++i)
        store_head(config, layer, head.part, results.row(i), plan.draft->block_rope.row(i),
                   plan.bf16_row(buffer, i) + col);
    };
    multiply_groups(worker, layer.qkv, 0, num_rows, head.group_begin,
                    head.group_begin + head.num_groups, store);
  }
}

void op_draft_attention(const Task& task, Worker& worker) {
  const PlanState& plan = *worker.step.plan;
  const StepInput& input = *worker.step.input;
  const DraftConfig& config = worker.draft->config();
  const float* sinks = worker.draft->layer(task.layer_idx).sink_logits;
  const uint32_t q_per_kv = config.q_per_kv(), window = config.window_tokens[task.layer_idx];
  const uint32_t anchor = input.positions[0];
  const uint32_t v_begin = config.num_kv_heads * config.qk_head_dim;
  AttendArgs args{};
  args.qk_head_dim = config.qk_head_dim;
  args.v_head_dim = config.v_head_dim;
  args.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.qk_head_dim)));
  args.segments = worker.segments.data();
  args.scratch = reinterpret_cast<float*>(worker.attend_scratch.data());

  const auto first_key_of = [&](uint32_t row) {
    const uint32_t end = anchor + row + 1;
    return FirstKey{input.seq_idx[0], window && end > window ? std::min(end - window, anchor) : 0};
  };
  AttendRow rows[kMaxAttendRows];
  args.rows = rows;
  for_attention_groups(
      task, input.num_draft_rows, config.num_q_heads, q_per_kv, first_key_of,
      [&](const AttentionGroup& group) {
        const uint32_t kv_head = group.kv_head, q_head = group.q_head;
        args.num_segments =
            worker.step.cache->segments(worker.config.num_layers + task.layer_idx, group.seq,
                                        kv_head, group.begin, anchor, worker.segments.data());
        for (uint32_t b = 0; b < input.num_draft_rows; ++b) {  // the block sees all of itself
          const bf16_t* kv = plan.bf16_row(task.input2, b);
          worker.segments[args.num_segments++] = {kv + kv_head * config.qk_head_dim,
                                                  kv + v_begin + kv_head * config.v_head_dim, 1};
        }
        for (uint32_t i = 0; i < group.num_rows; ++i) {
          const uint32_t row = group.rows[i];
          rows[i] = {plan.bf16_row(task.input, row) + q_head * config.qk_head_dim,
                     plan.bf16_row(task.output, row) + q_head * config.v_head_dim,
                     anchor - group.begin + input.num_draft_rows};
        }
        args.num_rows = group.num_rows;
        args.num_q = group.num_q;
        args.sink_logit = sinks ? sinks + q_head : nullptr;
        worker.kernels.attend(args);
      });
}

void op_draft_sample(const Task& task, Worker& worker) {
  const PlanState& plan = *worker.step.plan;
  const StepInput& input = *worker.step.input;
  const uint32_t vocab_size = plan.plan.shape().draft.vocab_size;
  const uint64_t num_tiles = uint64_t{task.tile_end} * input.num_draft_rows;
  for (uint64_t t = task.tile_first; t < num_tiles; t += task.tile_stride) {
    const auto row = static_cast<uint32_t>(t);
    if (row)
      propose_token(*input.round, row,
                    {plan.f32_row(task.input, row - 1), vocab_size, worker.draft->vocab_ids()});
  }
}

void op_accept(const Task& task, Worker& worker) {
  if (task.tile_first != 0) return;  // share 0 does all
  PlanState& plan = *worker.step.plan;
  const StepInput& input = *worker.step.input;
  RoundState& rounds = *input.round;
  std::array<BestLogitRow, kMaxBlockSize> best;
  std::array<LogitRow, kMaxBlockSize> rows;
  for (uint32_t row = 0; !input.wants_logits() && row < input.num_tokens; ++row) {
    best[row] = best_of_row(worker, row);
    rows[row] = best[row].row();
  }
  accept_round(rounds, {plan.f32_row(task.input, 0), plan.stride(task.input),
                        input.wants_logits() ? nullptr : rows.data()});
  if (rounds.end == RoundEnd::running) plan.fill_tables(input, *worker.step.cache);
}

}  // namespace mimo_rt::cpu
