// Query, key and value projection with RoPE and value scale, and attention with sinks and windows.
#include "plan/buffers.h"
#include "ref/ops.h"

#include <algorithm>
#include <cmath>

namespace mimo_rt::ref {

void Ops::qkv_proj(const Task& task, const Step& step) {
  const LayerWeights& layer = weights_.layer(task.layer_idx);
  const uint32_t num_tokens = step.input->num_tokens;
  const Rows rows = consumer_rows(task, step, nullptr, num_tokens, layer.qkv.k);
  for_each_tile(task, layer.qkv, rows, num_tokens,
                [&](uint32_t tile, uint32_t token, const double* y) {
                  store_qkv(task, step, layer.qkv_tiles[tile], token, y);
                });
}

/// y: the 16 rows of one tile for one token. Rotates, scales and stores them.
void Ops::store_qkv(const Task& task, const Step& step, const QkvTile& tile, uint32_t token,
                    const double* y) const {
  const LayerConfig& layer = config_.layers[task.layer_idx];
  const uint32_t seq = step.input->seq_idx[token], pos = step.input->positions[token];
  const uint32_t half = layer.rotary_dim / 2;
  const auto store = [&](uint32_t dim, double value) {
    if (tile.part == QkvTile::Part::q)
      step.buffers->write(task.output, token, tile.head_idx * layer.qk_head_dim + dim, value);
    else if (tile.part == QkvTile::Part::k)
      step.kv->write(KeyValues::Part::k, task.layer_idx, seq, tile.head_idx, pos, dim, value);
    else
      step.kv->write(KeyValues::Part::v, task.layer_idx, seq, tile.head_idx, pos, dim,
                     config_.value_scale * value);
  };
  for (uint32_t i = 0; i < tile.num_dims; ++i) {
    const uint32_t dim = tile.dim_begin + i;
    if (!tile.rotary) {
      store(dim, y[i]);
      continue;
    }
    const double angle = pos * std::pow(layer.rope_theta, -2.0 * dim / layer.rotary_dim);
    const double a = y[i], b = y[8 + i];
    store(dim, a * std::cos(angle) - b * std::sin(angle));
    store(dim + half, b * std::cos(angle) + a * std::sin(angle));
  }
}

void Ops::attention(const Task& task, const Step& step) {
  const LayerConfig& layer = config_.layers[task.layer_idx];
  const uint32_t num_tiles = task.tile_end * step.input->num_tokens;
  for (uint32_t t = task.tile_first; t < num_tiles; t += task.tile_stride) {
    const uint32_t token = t / task.tile_end, share = t % task.tile_end;
    const uint32_t end = share_begin(share + 1, task.tile_end, layer.num_q_heads);
    for (uint32_t head = share_begin(share, task.tile_end, layer.num_q_heads); head < end; ++head)
      attend(task, step, token, head);
  }
}

/// out = sum_j exp(s_j - m) v_j / (exp(sink - m) + sum_j exp(s_j - m)), s_j = q.k_j /
/// sqrt(qk_head_dim)
void Ops::attend_to(const Visible& visible, const Rows& q, Rows& out) {
  const size_t qk_head_dim = q.size();
  Rows k(qk_head_dim), v(out.size()), scores(visible.num_keys);
  double largest = visible.sink_logit ? *visible.sink_logit : -INFINITY;
  for (uint32_t j = 0; j < visible.num_keys; ++j) {
    visible.read_k(j, k.data());
    double dot = 0.0;
    for (size_t d = 0; d < qk_head_dim; ++d) dot += q[d] * k[d];
    scores[j] = dot / std::sqrt(static_cast<double>(qk_head_dim));
    largest = std::max(largest, scores[j]);
  }
  double sum = visible.sink_logit ? std::exp(*visible.sink_logit - largest) : 0.0;
  std::fill(out.begin(), out.end(), 0.0);
  for (uint32_t j = 0; j < visible.num_keys; ++j) {
    const double p = std::exp(scores[j] - largest);
    sum += p;
    visible.read_v(j, v.data());
    for (size_t d = 0; d < out.size(); ++d) out[d] += p * v[d];
  }
  for (double& value : out) value /= sum;
}

void Ops::attend(const Task& task, const Step& step, uint32_t token, uint32_t q_head) {
  const LayerConfig& layer = config_.layers[task.layer_idx];
  const uint32_t pos = step.input->positions[token], seq = step.input->seq_idx[token];
  const uint32_t kv_head = q_head / layer.q_per_kv(), window = layer.window_tokens;
  const uint32_t first = window && pos + 1 > window ? pos + 1 - window : 0;
  const auto reader = [&](KeyValues::Part part) {
    return [&step, &task, part, seq, kv_head, first](uint32_t key, double* row) {
      step.kv->read(part, task.layer_idx, seq, kv_head, first + key, row);
    };
  };
  const float* sinks = layer.has_sink ? weights_.layer(task.layer_idx).sink_logits : nullptr;
  const Visible visible{pos + 1 - first, reader(KeyValues::Part::k), reader(KeyValues::Part::v),
                        sinks ? sinks + q_head : nullptr};
  Rows q(layer.qk_head_dim), out(layer.v_head_dim);
  step.buffers->read(task.input, token, q_head * layer.qk_head_dim, layer.qk_head_dim, q.data());
  attend_to(visible, q, out);
  for (uint32_t d = 0; d < layer.v_head_dim; ++d)
    step.buffers->write(task.output, token, q_head * layer.v_head_dim + d, out[d]);
}

}  // namespace mimo_rt::ref
