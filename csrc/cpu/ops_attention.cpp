// Query, key and value projection with its epilogue (RoPE, value scale, KV write), and attention.
#include "cpu/ops_attention.h"

#include "core/numeric.h"
#include "cpu/ops_linear.h"
#include "plan/buffers.h"

#include <cmath>

namespace mimo_rt::cpu {
namespace {

/// Rotates, scales and rounds the 16 results of one tile and one token, once, into the row of their
/// head.
void store_tile(const QkvTile& tile, const float* y, const float* cos_sin, uint32_t half,
                float value_scale, bf16_t* head) {
  if (tile.rotary) {
    for (uint32_t i = 0; i < tile.num_dims; ++i) {
      const uint32_t dim = tile.dim_begin + i;
      const float a = y[i], b = y[8 + i];
      const float cosine = cos_sin[2 * dim], sine = cos_sin[2 * dim + 1];
      head[dim] = f32_to_bf16(a * cosine - b * sine);
      head[dim + half] = f32_to_bf16(b * cosine + a * sine);
    }
    return;
  }
  const float scale = tile.part == QkvTile::Part::v ? value_scale : 1.0f;
  for (uint32_t i = 0; i < tile.num_dims; ++i)
    head[tile.dim_begin + i] = f32_to_bf16(scale * y[i]);
}

}  // namespace

void op_qkv_proj(const Task& task, Worker& worker) {
  const PlanState& plan = *worker.step.plan;
  const StepInput& input = *worker.step.input;
  const LayerConfig& layer = worker.config.layers[task.layer_idx];
  const LayerWeights& weights = worker.weights.layer(task.layer_idx);
  const RopeTable* rope = plan.layer_ropes[task.layer_idx];
  const auto value_scale = static_cast<float>(worker.config.value_scale);
  const auto store = [&](const LinearResults& results) {
    for (uint32_t i = 0; i < results.num_rows; ++i) {
      const uint32_t token = results.first_row + i;
      const uint32_t seq = input.seq_idx[token], pos = input.positions[token];
      const float* cos_sin = rope ? rope->row(token) : nullptr;
      for (uint32_t g = 0; g < results.num_groups; ++g) {
        const QkvTile& tile = weights.qkv_tiles[results.first_group + g];
        bf16_t* head = nullptr;
        if (tile.part == QkvTile::Part::q)
          head = plan.bf16_row(task.output, token) + tile.head_idx * layer.qk_head_dim;
        else if (tile.part == QkvTile::Part::k)
          head = worker.step.cache->k_row(task.layer_idx, seq, tile.head_idx, pos);
        else
          head = worker.step.cache->v_row(task.layer_idx, seq, tile.head_idx, pos);
        store_tile(tile, results.row(i) + g * kTileRows, cos_sin, layer.rotary_dim / 2,
                   value_scale, head);
      }
    }
  };
  multiply_tiles(worker, task, weights.qkv, 1,
                 consumer_rows(task, worker, nullptr, input.num_tokens), store);
}

void op_attention(const Task& task, Worker& worker) {
  const PlanState& plan = *worker.step.plan;
  const StepInput& input = *worker.step.input;
  const LayerConfig& layer = worker.config.layers[task.layer_idx];
  const float* sinks = layer.has_sink ? worker.weights.layer(task.layer_idx).sink_logits : nullptr;
  const uint32_t q_per_kv = layer.q_per_kv(), window = layer.window_tokens;
  AttendArgs args{};
  args.qk_head_dim = layer.qk_head_dim;
  args.v_head_dim = layer.v_head_dim;
  args.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(layer.qk_head_dim)));
  args.segments = worker.segments.data();
  args.scratch = reinterpret_cast<float*>(worker.attend_scratch.data());

  const auto end_of = [&](uint32_t token) { return input.positions[token] + 1; };
  const auto first_key_of = [&](uint32_t token) {
    const uint32_t end = end_of(token);
    return FirstKey{input.seq_idx[token], window && end > window ? end - window : 0};
  };
  AttendRow rows[kMaxAttendRows];
  args.rows = rows;
  for_attention_groups(
      task, input.num_tokens, layer.num_q_heads, q_per_kv, first_key_of,
      [&](const AttentionGroup& group) {
        uint32_t end = 0;
        for (uint32_t i = 0; i < group.num_rows; ++i) {
          const uint32_t token = group.rows[i];
          rows[i] = {plan.bf16_row(task.input, token) + group.q_head * layer.qk_head_dim,
                     plan.bf16_row(task.output, token) + group.q_head * layer.v_head_dim,
                     end_of(token) - group.begin};
          end = std::max(end, end_of(token));
        }
        args.num_rows = group.num_rows;
        args.num_q = group.num_q;
        args.sink_logit = sinks ? sinks + group.q_head : nullptr;
        args.num_segments =
            worker.step.cache->segments(task.layer_idx, group.seq, group.kv_head, group.begin, end,
                                        worker.segments.data());
        worker.kernels.attend(args);
      });
}

}  // namespace mimo_rt::cpu
