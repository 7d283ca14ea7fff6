// The draft by its formulas: float64, plain loops, one query at a time. Shares nothing with the executors but the
// unpacking of weights, which has tests of its own.
#pragma once

#include "core/numeric.h"
#include "draft_run.h"
#include "ref/ops.h"
#include "ref/packed_access.h"
#include "ref/storage.h"

#include <cmath>
#include <map>
#include <vector>

namespace fixture {

using Vector = std::vector<double>;

class DraftOracle {
 public:
  explicit DraftOracle(const DraftModel& model)
      : config_(model.style.draft), weights_(model.weights), draft_(model.draft), layers_(config_.num_layers) {}

  /// Features of the position that follows; its keys are rotated for that position plus `shift`.
  void add_context(const Vector& features, uint32_t shift = 0) {
    const Vector u = rms_norm(multiply(draft_.fc(), features, 0, config_.hidden_size), draft_.hidden_norm());
    for (uint32_t l = 0; l < config_.num_layers; ++l)
      layers_[l].push_back(keys_and_values(l, u, static_cast<uint32_t>(layers_[l].size()) + shift));
  }

  /// Logits of rows 1.. of a block whose anchor follows the context; draft_x keeps the rows before the last norm.
  std::vector<Vector> logits(int32_t anchor) {
    const auto pos = static_cast<uint32_t>(layers_[0].size());
    draft_x.assign(config_.block_size, Vector(config_.hidden_size));
    for (uint32_t t = 0; t < config_.block_size; ++t)
      for (uint32_t i = 0; i < config_.hidden_size; ++i)
        draft_x[t][i] = t ? double{bf16_to_f32(draft_.mask_embedding()[i])}
                          : ref::packed_weight(weights_.embed(), static_cast<uint32_t>(anchor), i);
    for (uint32_t l = 0; l < config_.num_layers; ++l) run_layer(l, pos);
    std::vector<Vector> out;
    for (uint32_t t = 1; t < config_.block_size; ++t) {
      const Vector y = rms_norm(draft_x[t], draft_.final_norm());
      const Vector all = multiply(weights_.lm_head(), y, 0, weights_.config().vocab_size);
      if (!config_.draft_vocab_size) {
        out.push_back(all);
        continue;
      }
      out.emplace_back();
      for (uint32_t i = 0; i < config_.draft_vocab_size; ++i) out.back().push_back(all[draft_.vocab_ids()[i]]);
    }
    return out;
  }

  /// K of all heads, then V of all heads.
  const Vector& context_kv(uint32_t layer, uint32_t pos) const { return layers_[layer][pos]; }

  std::vector<Vector> draft_x;

 private:
  Vector multiply(const PackedMatrix& matrix, const Vector& x, uint32_t row_begin, uint32_t num_rows) {
    std::vector<double>& dense = dense_[matrix.data];
    if (dense.empty())
      for (uint32_t r = 0; r < matrix.rows; ++r)
        for (uint32_t k = 0; k < matrix.k; ++k) dense.push_back(ref::packed_weight(matrix, r, k));
    Vector y(num_rows);
    for (uint32_t r = 0; r < num_rows; ++r)
      for (size_t k = 0; k < x.size(); ++k) y[r] += dense[uint64_t{row_begin + r} * matrix.k + k] * x[k];
    return y;
  }

  Vector rms_norm(Vector x, const float* weight) const {
    double sum = 0.0;
    for (const double value : x) sum += value * value;
    const double factor = 1.0 / std::sqrt(sum / static_cast<double>(x.size()) + config_.rms_norm_eps);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= factor * weight[i];
    return x;
  }

  Vector rotate(Vector head, uint32_t pos) const {
    const uint32_t half = config_.rotary_dim / 2;
    for (uint32_t j = 0; j < half; ++j) {
      const double angle = pos / std::pow(config_.rope_theta, 2.0 * j / config_.rotary_dim);
      const double a = head[j], b = head[j + half];
      head[j] = a * std::cos(angle) - b * std::sin(angle);
      head[j + half] = b * std::cos(angle) + a * std::sin(angle);
    }
    return head;
  }

  Vector keys_and_values(uint32_t l, const Vector& input, uint32_t pos) {
    const DraftLayerWeights& layer = draft_.layer(l);
    const uint32_t qk = config_.qk_head_dim, vd = config_.v_head_dim;
    uint32_t row = config_.num_q_heads * qk;
    Vector out;
    for (uint32_t h = 0; h < config_.num_kv_heads; ++h, row += qk) {
      Vector k = multiply(layer.qkv, input, row, qk);
      if (layer.k_norm) k = rms_norm(k, layer.k_norm);
      k = rotate(k, pos);
      out.insert(out.end(), k.begin(), k.end());
    }
    for (double value : multiply(layer.qkv, input, row, config_.num_kv_heads * vd))
      out.push_back(value * config_.value_scale);
    return out;
  }

  void run_layer(uint32_t l, uint32_t anchor_pos) {
    const DraftLayerWeights& layer = draft_.layer(l);
    std::vector<Vector> normed, block;
    for (uint32_t t = 0; t < config_.block_size; ++t) {
      normed.push_back(rms_norm(draft_x[t], layer.attn_norm));
      block.push_back(keys_and_values(l, normed[t], anchor_pos + t));
    }
    for (uint32_t t = 0; t < config_.block_size; ++t) {
      const Vector attended = attend(l, normed[t], anchor_pos, t, block);
      add(draft_x[t], multiply(layer.o_proj, attended, 0, config_.hidden_size));
      const Vector h = rms_norm(draft_x[t], layer.mlp_norm);
      Vector act;
      for (uint32_t i = 0; i < config_.intermediate_size; ++i) {
        const uint32_t gate_row = i / 16 * 32 + i % 16;
        const double gate = multiply(layer.gate_up, h, gate_row, 1)[0];
        act.push_back(gate / (1.0 + std::exp(-gate)) * multiply(layer.gate_up, h, gate_row + 16, 1)[0]);
      }
      add(draft_x[t], multiply(layer.down, act, 0, config_.hidden_size));
    }
  }

  Vector attend(uint32_t l, const Vector& input, uint32_t anchor_pos, uint32_t t, const std::vector<Vector>& block) {
    const DraftLayerWeights& layer = draft_.layer(l);
    const uint32_t qk = config_.qk_head_dim, vd = config_.v_head_dim, window = config_.window_tokens[l];
    std::vector<const Vector*> seen;
    for (uint32_t j = 0; j < anchor_pos; ++j)
      if (!window || anchor_pos + t - j < window) seen.push_back(&layers_[l][j]);
    for (const Vector& row : block) seen.push_back(&row);
    Vector out;
    for (uint32_t h = 0; h < config_.num_q_heads; ++h) {
      const uint32_t kv_head = h / config_.q_per_kv();
      Vector q = multiply(layer.qkv, input, h * qk, qk);
      if (layer.q_norm) q = rms_norm(q, layer.q_norm);
      q = rotate(q, anchor_pos + t);
      double sum = layer.sink_logits ? std::exp(double{layer.sink_logits[h]}) : 0.0;
      Vector mean(vd);
      for (const Vector* kv : seen) {
        double score = 0.0;
        for (uint32_t d = 0; d < qk; ++d) score += q[d] * (*kv)[kv_head * qk + d];
        const double p = std::exp(score / std::sqrt(double(qk)));
        sum += p;
        for (uint32_t d = 0; d < vd; ++d) mean[d] += p * (*kv)[config_.num_kv_heads * qk + kv_head * vd + d];
      }
      for (const double value : mean) out.push_back(value / sum);
    }
    return out;
  }

  static void add(Vector& x, const Vector& delta) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += delta[i];
  }

  const DraftConfig& config_;
  const Weights& weights_;
  const DraftWeights& draft_;
  std::vector<std::vector<Vector>> layers_;  // [layer][pos]
  std::map<const uint8_t*, std::vector<double>> dense_;
};

/// Features of every position, in the order of target_layer_ids: x after the captured layers of a step of the exact
/// reference without a draft, written down while its tasks run.
inline std::vector<Vector> exact_features(const DraftModel& model, const std::vector<int32_t>& tokens) {
  const ModelConfig& config = model.style.config;
  const auto count = static_cast<uint32_t>(tokens.size());
  const Plan plan = Plan::build(config, plan_options(1, count, count));
  KvCache cache(config, {.max_context = 256, .max_step_tokens = count, .num_seqs = 1});
  cache.reserve(0, count);
  ref::Buffers buffers(plan, true);
  ref::KeyValues kv(config, true);
  kv.select(cache);
  ref::Ops ops(model.weights, true);
  const StepRows rows(tokens, 0, 0, count);
  StepOutput output;
  std::map<uint32_t, std::vector<Vector>> x_after;
  for (const Task& task : plan.tasks(0)) {
    if (task.kind == TaskKind::sample) break;
    ops.run(task, {&plan, &buffers, &kv, &rows.input, &output});
    if (task.kind != TaskKind::down_proj && task.kind != TaskKind::expert_down) continue;
    std::vector<Vector>& x = x_after[task.layer_idx];
    x.assign(count, Vector(config.hidden_size));
    for (uint32_t t = 0; t < count; ++t) buffers.read(kX, t, 0, config.hidden_size, x[t].data());
  }
  std::vector<Vector> features(count);
  for (uint32_t t = 0; t < count; ++t)
    for (const uint32_t id : model.style.draft.target_layer_ids)
      features[t].insert(features[t].end(), x_after[id][t].begin(), x_after[id][t].end());
  return features;
}

}  // namespace fixture
