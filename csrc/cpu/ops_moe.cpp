// Routing and the experts. Sums over experts run in ascending order of the expert, whoever computes
// them.
#include "cpu/ops_linear.h"
#include "plan/buffers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <utility>

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

namespace {

/// Calls run(first_row, num_rows) for the blocks of an expert's rows.
template <typename Run>
void for_row_blocks(uint32_t num_slots, const Run& run) {
  for (uint32_t row = 0; row < num_slots; row += kMaxBlockTokens)
    run(row, std::min(kMaxBlockTokens, num_slots - row));
}

/// Row-group pairs of the tiles of expert_gate_up. A tile is cut into `num_cuts` parts: the units.
struct ExpertTiles {
  ExpertTiles(const Worker& worker, const Task& task)
      : shares(task.tile_end),
        num_pairs((worker.config.expert_intermediate_size + kTileRows - 1) / kTileRows),
        num_tiles(uint64_t{shares} * *worker.step.plan->route.num_active),
        num_cuts(std::clamp(num_pairs / shares / kPairsPerUnit, 1u, kMaxCuts)) {}

  uint32_t count_units(const Task& task) const {
    if (task.tile_first >= num_tiles) return 0;
    const uint64_t own = (num_tiles - task.tile_first - 1) / task.tile_stride + 1;
    return static_cast<uint32_t>(own * num_cuts);
  }

  /// Pairs [begin, end) of cuts [cut, cut_end) of a share.
  std::pair<uint32_t, uint32_t> pairs(uint32_t share, uint32_t cut, uint32_t cut_end) const {
    const uint32_t begin = share_begin(share, shares, num_pairs);
    const uint32_t count = share_begin(share + 1, shares, num_pairs) - begin;
    return {begin + share_begin(cut, num_cuts, count),
            begin + share_begin(cut_end, num_cuts, count)};
  }

  static constexpr uint32_t kPairsPerUnit = 4, kMaxCuts = 8;
  uint32_t shares, num_pairs;
  uint64_t num_tiles;
  uint32_t num_cuts;
};

/// Of the rows in a worker's scratch.
struct PreparedTokens {
  std::span<const uint32_t> tokens;
  const PackedMatrix* matrix = nullptr;  ///< they serve all of its format

  bool serve(const PackedMatrix& other, std::span<const uint32_t> wanted) const {
    return matrix && matrix->format == other.format && std::ranges::equal(tokens, wanted);
  }
};

/// Pairs [pair_begin, pair_end) of active expert i.
void gate_up_pairs(const Task& task, Worker& worker, uint32_t i, uint32_t pair_begin,
                   uint32_t pair_end, PreparedTokens& prepared) {
  const RouteTable& route = worker.step.plan->route;
  const PackedMatrix& matrix =
      worker.weights.layer(task.layer_idx).expert_gate_up[route.active_experts[i]];
  const uint32_t slot = route.slot_begin[i], num_slots = route.slot_begin[i + 1] - slot;
  const LinearInput input = consumer_rows(task, worker, route.slot_token + slot, num_slots);
  for_row_blocks(num_slots, [&](uint32_t row, uint32_t num_rows) {
    // Experts of the same tokens read the same activations: always so in a step of one token.
    const std::span<const uint32_t> tokens{route.slot_token + slot + row, num_rows};
    if (!prepared.serve(matrix, tokens)) prepare_rows(worker, matrix, input, row, num_rows);
    prepared = {tokens, &matrix};
    multiply_groups(worker, matrix, row, num_rows, 2 * pair_begin, 2 * pair_end,
                    [&](const LinearResults& results) {
                      store_gate_up(task, worker, results, slot + results.first_row,
                                    worker.config.expert_intermediate_size);
                    });
  });
}

}  // namespace

void op_expert_gate_up(const Task& task, Worker& worker) {
  PreparedTokens prepared;
  run_shared(worker.place, task, worker.epoch,
             [&](const Task& t) { return ExpertTiles(worker, t).count_units(t); },
             [&](const Task& t, uint32_t begin, uint32_t end) {
    const ExpertTiles tiles(worker, t);
    for (uint32_t unit = begin; unit < end;) {
      const uint32_t cut = unit % tiles.num_cuts;
      const uint32_t cut_end = std::min(tiles.num_cuts, cut + (end - unit));
      const uint64_t tile = t.tile_first + uint64_t{unit / tiles.num_cuts} * t.tile_stride;
      const auto [pair_begin, pair_end] =
          tiles.pairs(static_cast<uint32_t>(tile % tiles.shares), cut, cut_end);
      gate_up_pairs(t, worker, static_cast<uint32_t>(tile / tiles.shares), pair_begin, pair_end,
                    prepared);
      unit += cut_end - cut;
    }
  });
}

namespace {

/// The activations of all active experts: prepared one after the other before the first unit, where
/// they all fit and none has more than one block; else each expert's when it comes, again for every
/// block of columns.
class ExpertRows {
 public:
  ExpertRows(const Task& task, Worker& worker) : task_(task), worker_(worker) {
    uint64_t num_bytes = 0;
    uint32_t most_slots = 0;
    for (uint32_t i = 0; i < *route().num_active; ++i) {
      num_bytes += prepared_bytes(i);
      most_slots = std::max(most_slots, num_slots(i));
    }
    fit_ = num_bytes <= worker.prepared.size() && most_slots <= kMaxBlockTokens;
  }

  bool fit() const { return fit_; }
  /// To be called before each unit: whoever gets none prepares nothing.
  void prepare_if_fit() {
    if (!fit_ || is_prepared_) return;
    uint8_t* out = worker_.prepared.data();
    for (uint32_t i = 0; i < *route().num_active; ++i) {
      prepare_rows(worker_, matrix(i), input(i), 0, num_slots(i), out);
      out += prepared_bytes(i);
    }
    is_prepared_ = true;
  }

  const PackedMatrix& matrix(uint32_t i) const {
    return worker_.weights.layer(task_.layer_idx).expert_down[route().active_experts[i]];
  }
  uint32_t num_slots(uint32_t i) const {
    return route().slot_begin[i + 1] - route().slot_begin[i];
  }
  uint64_t prepared_bytes(uint32_t i) const {
    const PackedMatrix& m = matrix(i);
    return (worker_.kernels.prepared_bytes(static_cast<int>(m.format), num_slots(i), m.k) + 63) &
           ~uint64_t{63};
  }
  LinearInput input(uint32_t i) const {
    const PlanState& plan = *worker_.step.plan;
    return {plan.bf16_row(task_.input, route().slot_begin[i]), plan.stride(task_.input), nullptr,
            num_slots(i), worker_.config.expert_intermediate_size};
  }

 private:
  const RouteTable& route() const { return worker_.step.plan->route; }

  const Task& task_;
  Worker& worker_;
  bool fit_;
  bool is_prepared_ = false;
};

/// expert_sums[token, col] = sum of w_e * (W_e act)[col] over the active experts, for one block of
/// row groups.
void sum_experts(const ExpertRows& experts, Worker& worker, uint32_t group_begin,
                 uint32_t group_end) {
  const RouteTable& route = worker.step.plan->route;
  const uint32_t num_cols = (group_end - group_begin) * kTileRows;
  auto* sums = reinterpret_cast<float*>(worker.expert_sums.data());
  std::memset(sums, 0, sizeof(float) * worker.step.input->num_tokens * num_cols);
  const uint8_t* prepared = worker.prepared.data();
  for (uint32_t i = 0; i < *route.num_active; ++i) {
    const PackedMatrix& matrix = experts.matrix(i);
    const uint32_t slot = route.slot_begin[i], num_slots = experts.num_slots(i);
    for_row_blocks(num_slots, [&](uint32_t row, uint32_t num_rows) {
      if (!experts.fit()) prepare_rows(worker, matrix, experts.input(i), row, num_rows);
      multiply_groups(worker, matrix, prepared, row, num_rows, group_begin, group_end,
                      [&](const LinearResults& results) {
                        const uint32_t col = (results.first_group - group_begin) * kTileRows;
                        for (uint32_t r = 0; r < results.num_rows; ++r) {
                          const uint32_t s = slot + results.first_row + r;
                          worker.kernels.axpy(
                              route.slot_weight[s], results.row(r), results.stride,
                              sums + uint64_t{route.slot_token[s]} * num_cols + col);
                        }
                      });
    });
    if (experts.fit()) prepared += experts.prepared_bytes(i);
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
  const uint32_t max_groups =
      std::max(1u, kExpertSumFloats / (kTileRows * worker.step.input->num_tokens));
  ExpertRows experts(task, worker);
  // Where rows have to be prepared for every block of columns, blocks are as large as they get.
  const auto num_units = [&](const Task& t) {
    const uint32_t num_blocks = (count_tiles(t) + max_groups - 1) / max_groups;
    return experts.fit() ? count_parts(t) : std::min(count_parts(t), num_blocks);
  };
  run_shared(worker.place, task, worker.epoch, num_units,
             [&](const Task& t, uint32_t begin, uint32_t end) {
    experts.prepare_if_fit();
    const uint32_t num_parts = num_units(t), num_tiles = count_tiles(t);
    for_tile_runs(t, share_begin(begin, num_parts, num_tiles),
                  share_begin(end, num_parts, num_tiles), [&](uint32_t group, uint32_t run_end) {
      for (; group < run_end; group += max_groups) {
        const uint32_t group_end = std::min(run_end, group + max_groups);
        sum_experts(experts, worker, group, group_end);
        add_expert_sums(t, worker, group, group_end);
      }
    });
  });
}

}  // namespace mimo_rt::cpu
