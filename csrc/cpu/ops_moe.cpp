// Routing and the experts. Sums over experts run in ascending order of the expert, whoever computes
// them.
#include "cpu/ops_linear.h"
#include "plan/buffers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

namespace mimo_rt::cpu {
namespace {

/// Scratch of one select_experts task.
struct Selection {
  float* sigma;       ///< [num_experts]
  uint32_t* next;     ///< [num_experts] slots given out so far
  float* scores;      ///< [experts_per_token] of the token at hand, descending
  uint32_t* experts;  ///< [num_tokens, experts_per_token] ascending
  float* weights;     ///< [num_tokens, experts_per_token]
};

Selection view_selection(const Worker& worker) {
  const ModelConfig& config = worker.config;
  const uint64_t slots = uint64_t{worker.step.input->num_tokens} * config.experts_per_token;
  auto* words = reinterpret_cast<float*>(worker.select_scratch.data());
  Selection s{};
  s.sigma = words;
  s.next = reinterpret_cast<uint32_t*>(s.sigma + config.num_experts);
  s.scores = reinterpret_cast<float*>(s.next + config.num_experts);
  s.experts = reinterpret_cast<uint32_t*>(s.scores + config.experts_per_token);
  s.weights = reinterpret_cast<float*>(s.experts + slots);
  return s;
}

/// The experts_per_token largest sigma + bias, lowest index first among equals; then ascending by
/// index. A NaN loses against everything, so that there are always enough experts.
void choose_experts(const ModelConfig& config, const float* logits, const float* bias,
                    const Selection& s, uint32_t* chosen) {
  uint32_t count = 0;
  for (uint32_t e = 0; e < config.num_experts; ++e) {
    s.sigma[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    float score = s.sigma[e] + (bias ? bias[e] : 0.0f);
    if (std::isnan(score)) score = -std::numeric_limits<float>::infinity();
    if (count == config.experts_per_token && !(score > s.scores[count - 1])) continue;
    uint32_t place = count < config.experts_per_token ? count++ : count - 1;
    for (; place > 0 && score > s.scores[place - 1]; --place) {
      s.scores[place] = s.scores[place - 1];
      chosen[place] = chosen[place - 1];
    }
    s.scores[place] = score;
    chosen[place] = e;
  }
  std::sort(chosen, chosen + count);
}

void weigh_experts(const ModelConfig& config, const Selection& s, const uint32_t* chosen,
                   float* weights) {
  float sum = 1e-20f;
  for (uint32_t i = 0; i < config.experts_per_token; ++i) sum += s.sigma[chosen[i]];
  const auto factor = static_cast<float>(config.routed_scaling_factor);
  for (uint32_t i = 0; i < config.experts_per_token; ++i) {
    const float sigma = s.sigma[chosen[i]];
    weights[i] = (config.norm_topk_prob ? sigma / sum : sigma) * factor;
  }
}

/// Counts slots per expert, lists the active ones, and sorts the slots by expert and token.
uint32_t fill_route(const Worker& worker, const Selection& s) {
  const ModelConfig& config = worker.config;
  const RouteTable& route = worker.step.plan->route;
  const uint32_t num_tokens = worker.step.input->num_tokens, chosen = config.experts_per_token;
  std::fill(s.next, s.next + config.num_experts, 0u);
  for (uint32_t i = 0; i < num_tokens * chosen; ++i) ++s.next[s.experts[i]];
  uint32_t num_active = 0, slot = 0;
  for (uint32_t e = 0; e < config.num_experts; ++e) {
    const uint32_t num_slots = s.next[e];
    s.next[e] = slot;
    if (!num_slots) continue;
    route.active_experts[num_active] = e;
    route.slot_begin[num_active++] = slot;
    slot += num_slots;
  }
  route.slot_begin[num_active] = slot;
  *route.num_active = num_active;
  for (uint32_t t = 0; t < num_tokens; ++t)
    for (uint32_t i = t * chosen; i < (t + 1) * chosen; ++i) {
      const uint32_t place = s.next[s.experts[i]]++;
      route.slot_token[place] = t;
      route.slot_weight[place] = s.weights[i];
    }
  return num_active;
}

}  // namespace

void op_select_experts(const Task& task, Worker& worker) {
  const float* bias = worker.weights.layer(task.layer_idx).router_bias;
  const uint32_t chosen = worker.config.experts_per_token;
  const Selection s = view_selection(worker);
  for (uint32_t t = 0; t < worker.step.input->num_tokens; ++t) {
    const float* logits = worker.step.plan->f32_row(task.input, t);
    choose_experts(worker.config, logits, bias, s, s.experts + t * chosen);
    weigh_experts(worker.config, s, s.experts + t * chosen, s.weights + t * chosen);
  }
  worker.num_active_experts += fill_route(worker, s);
}

void op_expert_gate_up(const Task& task, Worker& worker) {
  const LayerWeights& layer = worker.weights.layer(task.layer_idx);
  const RouteTable& route = worker.step.plan->route;
  const uint32_t width = worker.config.expert_intermediate_size, shares = task.tile_end;
  const uint32_t num_pairs = (width + kTileRows - 1) / kTileRows;
  const uint64_t num_tiles = uint64_t{shares} * *route.num_active;
  std::span<const uint32_t> prepared;  // the tokens whose rows worker.prepared holds, for
  const PackedMatrix* prepared_for = nullptr;  // matrices of this one's format
  for (uint64_t t = task.tile_first; t < num_tiles; t += task.tile_stride) {
    const uint32_t i = static_cast<uint32_t>(t / shares), share = static_cast<uint32_t>(t % shares);
    const uint32_t pair_begin = share_begin(share, shares, num_pairs);
    const uint32_t pair_end = share_begin(share + 1, shares, num_pairs);
    const PackedMatrix& matrix = layer.expert_gate_up[route.active_experts[i]];
    const uint32_t slot = route.slot_begin[i], num_slots = route.slot_begin[i + 1] - slot;
    const LinearInput input = consumer_rows(task, worker, route.slot_token + slot, num_slots);
    for (uint32_t row = 0; row < num_slots; row += kMaxBlockTokens) {
      const uint32_t num_rows = std::min(kMaxBlockTokens, num_slots - row);
      const std::span<const uint32_t> tokens{route.slot_token + slot + row, num_rows};
      // Experts of the same tokens read the same activations: always so in a step of one token.
      if (!prepared_for || prepared_for->format != matrix.format ||
          !std::ranges::equal(tokens, prepared))
        prepare_rows(worker, matrix, input, row, num_rows);
      prepared = tokens;
      prepared_for = &matrix;
      multiply_groups(worker, matrix, row, num_rows, 2 * pair_begin, 2 * pair_end,
                      [&](const LinearResults& results) {
                        store_gate_up(task, worker, results, slot + results.first_row, width);
                      });
    }
  }
}

namespace {

/// expert_sums[token, col] = sum of w_e * (W_e act)[col] over the active experts, for one block of
/// row groups.
void sum_experts(const Task& task, Worker& worker, uint32_t group_begin, uint32_t group_end) {
  const LayerWeights& layer = worker.weights.layer(task.layer_idx);
  const PlanState& plan = *worker.step.plan;
  const RouteTable& route = plan.route;
  const uint32_t num_cols = (group_end - group_begin) * kTileRows;
  auto* sums = reinterpret_cast<float*>(worker.expert_sums.data());
  std::memset(sums, 0, sizeof(float) * worker.step.input->num_tokens * num_cols);
  for (uint32_t i = 0; i < *route.num_active; ++i) {
    const PackedMatrix& matrix = layer.expert_down[route.active_experts[i]];
    const uint32_t slot = route.slot_begin[i], num_slots = route.slot_begin[i + 1] - slot;
    const LinearInput input{plan.bf16_row(task.input, slot), plan.stride(task.input), nullptr,
                            num_slots, worker.config.expert_intermediate_size};
    for (uint32_t row = 0; row < num_slots; row += kMaxBlockTokens) {
      const uint32_t num_rows = std::min(kMaxBlockTokens, num_slots - row);
      prepare_rows(worker, matrix, input, row, num_rows);
      multiply_groups(worker, matrix, row, num_rows, group_begin, group_end,
                      [&](const LinearResults& results) {
                        const uint32_t col = (results.first_group - group_begin) * kTileRows;
                        for (uint32_t r = 0; r < results.num_rows; ++r) {
                          const uint32_t s = slot + results.first_row + r;
                          worker.kernels.axpy(
                              route.slot_weight[s], results.row(r), results.stride,
                              sums + uint64_t{route.slot_token[s]} * num_cols + col);
                        }
                      });
    }
  }
}

void add_expert_sums(const Task& task, Worker& worker, uint32_t group_begin, uint32_t group_end) {
  const uint32_t col = group_begin * kTileRows, num_cols = (group_end - group_begin) * kTileRows;
  const uint32_t num_valid = std::min(num_cols, worker.config.hidden_size - col);
  const auto* sums = reinterpret_cast<const float*>(worker.expert_sums.data());
  for (uint32_t t = 0; t < worker.step.input->num_tokens; ++t) {
    worker.kernels.add_residual(sums + uint64_t{t} * num_cols, num_valid,
                                worker.step.plan->bf16_row(task.output, t) + col);
    capture_features(task, worker, t, col, num_valid);
  }
}

}  // namespace

void op_expert_down(const Task& task, Worker& worker) {
  const uint32_t num_tokens = worker.step.input->num_tokens;
  const uint32_t max_groups = std::max(1u, kExpertSumFloats / (kTileRows * num_tokens));
  for (uint64_t tile = task.tile_first; tile < task.tile_end; tile += task.tile_stride) {
    const uint32_t run_end =
        task.tile_stride == 1 ? task.tile_end : static_cast<uint32_t>(tile) + 1;
    for (uint32_t begin = static_cast<uint32_t>(tile); begin < run_end; begin += max_groups) {
      const uint32_t end = std::min(run_end, begin + max_groups);
      sum_experts(task, worker, begin, end);
      add_expert_sums(task, worker, begin, end);
    }
    if (task.tile_stride == 1) break;
  }
}

}  // namespace mimo_rt::cpu
