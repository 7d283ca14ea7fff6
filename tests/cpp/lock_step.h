// Runs a plan task by task on the CPU ops and the reference ops, both from the same bytes, and compares each task's
// output under a bound derived from its inputs.
//
// The bounds. u = 2^-24. A sum of K products in FP32, in any order, is within (K + c) u sum |a b| of the exact one (the
// products of BF16, FP8 and FP4 are exact; c counts scales and roundings after the sum). Both sides then round to BF16:
// two roundings of nearby numbers differ by at most one BF16 unit, 2^-7 of the value.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/ops_context.h"
#include "plan/buffers.h"
#include "plan/route_table.h"
#include "ref/ops.h"
#include "ref/packed_access.h"
#include "ref/storage.h"
#include "step_fixture.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <string>

namespace fixture {

inline constexpr double kUnit = 0x1p-24;
inline constexpr double kBf16Unit = 0x1p-7;

/// What a run found, by task kind.
struct LockStepResult {
  std::map<std::string, uint64_t> num_compared, num_outside;
  std::map<std::string, double> worst;  ///< |difference| / bound
  uint64_t num_strays = 0;              ///< bytes changed outside a task's output
  uint64_t outside() const {
    uint64_t sum = 0;
    for (const auto& [kind, count] : num_outside) sum += count;
    return sum;
  }
};

class LockStep {
 public:
  /// Differences between the two weights are what a negative control introduces.
  LockStep(const Weights& ref_weights, const Weights& cpu_weights, const std::string& backend,
           uint32_t max_tokens, Activations activations = Activations::bf16)
      : LockStep(ref_weights, cpu_weights, backend, max_tokens, activations, activations) {}
  LockStep(const Weights& ref_weights, const Weights& cpu_weights, const std::string& backend,
           uint32_t max_tokens, Activations activations, Activations cpu_activations)
      : config_(ref_weights.config()),
        weights_(ref_weights),
        plan_(Plan::build(config_, plan_options(1, max_tokens, max_tokens, PlanOptions::FuseNorm::no))),
        ref_buffers_(plan_, false),
        ref_kv_(config_, false),
        ref_ops_(ref_weights, false, nullptr, activations),
        activations_(activations),
        ref_cache_(config_, cache_options(max_tokens)),
        cpu_cache_(config_, cache_options(max_tokens)) {
    plans_.push_back(std::make_unique<cpu::PlanState>(plan_, cpu_weights.config()));
    const cpu::Kernels& kernels = cpu::select_kernels(backend, cpu_activations);
    const cpu::ScratchSizes sizes(cpu_weights, kernels, plans_);
    worker_ = std::make_unique<cpu::Worker>(cpu_weights, kernels, sizes, step_);
    worker_->segments.resize(cpu_cache_.max_segments());
    ref_kv_.select(ref_cache_);
    ref_cache_.reserve(0, 128);
    cpu_cache_.reserve(0, 128);
  }

  std::function<void(const Task&, cpu::PlanState&)> before_cpu_task;  ///< for negative controls

  void run(const std::vector<int32_t>& tokens, uint32_t begin, uint32_t end) {
    const StepRows rows(tokens, 0, begin, end);
    StepOutput ref_output, cpu_output;
    cpu::PlanState& state = *plans_[0];
    for (cpu::RopeTable& rope : state.ropes) rope.fill(rows.input.positions, rows.input.num_tokens);
    step_ = {&state, &cpu_cache_, &rows.input, &cpu_output, step_.number + 1};
    input_ = &rows.input;
    for (const Task& task : plan_.tasks(0)) {
      for (uint16_t id = kX; id <= kLogits; ++id)
        if (bytes(id)) std::memcpy(state.buffer(id), ref_buffers_.data(id), bytes(id));
      std::vector<std::vector<uint8_t>> inputs = snapshot();
      if (before_cpu_task) before_cpu_task(task, state);
      cpu::run_task(task, *worker_);
      const ref::Step step{&plan_, &ref_buffers_, &ref_kv_, &rows.input, &ref_output};
      old_x_ = inputs[kX];
      bound_task(task);
      ref_ops_.run(task, step);
      compare_task(task);
      count_strays(task, inputs);
    }
  }

  LockStepResult result;

 private:
  using Rows = std::vector<double>;

  static KvCache::Options cache_options(uint32_t max_tokens) {
    return {.max_context = 128, .max_step_tokens = max_tokens, .num_seqs = 1};
  }
  uint64_t bytes(uint16_t id) const {
    const BufferInfo& info = plan_.buffers()[id];
    return info.space == BufferInfo::Space::arena || id == kLogits ? info.bytes : 0;
  }
  std::vector<std::vector<uint8_t>> snapshot() const {
    std::vector<std::vector<uint8_t>> copies(kLogits + 1);
    for (uint16_t id = kX; id <= kLogits; ++id)
      copies[id].assign(ref_buffers_.data(id), ref_buffers_.data(id) + bytes(id));
    return copies;
  }
  RouteTable route() const {
    return RouteTable::view(const_cast<uint8_t*>(ref_buffers_.data(kRoute)), config_.num_experts,
                            plan_.options().max_tokens * config_.experts_per_token);
  }
  Rows input_row(uint16_t id, uint32_t row, uint32_t num, uint32_t k) const {
    Rows out(k);
    ref_buffers_.read(id, row, 0, num, out.data());
    return out;
  }

  /// sum over k of |w x| (or of w x) for every row of the matrix.
  Rows products(const PackedMatrix& matrix, Rows x, bool absolute) const {
    if (activations_ == Activations::int8 && matrix.format == PackedFormat::mxfp4)
      for (uint32_t k = 0; k < matrix.k; k += kBlockK)
        round_to_int8(std::span<double, kBlockK>(x.data() + k, kBlockK));
    Rows out(matrix.rows), w(uint64_t{matrix.k} * 16);
    for (uint32_t g = 0; g < matrix.num_row_groups(); ++g) {
      ref::unpack_row_group(matrix, g, w.data());
      for (uint32_t k = 0; k < matrix.k; ++k)
        for (uint32_t i = 0; i < 16; ++i) {
          const double product = w[k * 16 + i] * x[k];
          out[g * 16 + i] += absolute ? std::fabs(product) : product;
        }
    }
    return out;
  }
  static double sum_unit(uint32_t k) { return (k + 8) * kUnit; }

  void set_bound(uint32_t row, uint32_t col, double bound) { bounds_[{row, col}] = bound; }

  void bound_task(const Task& task) {
    bounds_.clear();
    kv_bounds_.clear();
    switch (task.kind) {
      case TaskKind::rms_norm: return bound_rms_norm();
      case TaskKind::qkv_proj: return bound_qkv(task);
      case TaskKind::attention: return bound_attention(task);
      case TaskKind::router:
      case TaskKind::lm_head:
      case TaskKind::o_proj:
      case TaskKind::down_proj: return bound_linear(task);
      case TaskKind::gate_up_proj:
        for (uint32_t t = 0; t < input_->num_tokens; ++t)
          bound_gate_up(weights_.layer(task.layer_idx).gate_up, t, t, config_.intermediate_size);
        return;
      case TaskKind::expert_gate_up:
        for_each_slot([&](uint32_t slot, uint32_t expert) {
          bound_gate_up(weights_.layer(task.layer_idx).expert_gate_up[expert],
                        route().slot_token[slot], slot, config_.expert_intermediate_size);
        });
        return;
      case TaskKind::expert_down: return bound_expert_down(task);
      default: return;  // embed, select_experts, sample: compared in their own way
    }
  }

  void bound_rms_norm() {
    for (uint32_t t = 0; t < input_->num_tokens; ++t)
      for (uint32_t i = 0; i < config_.hidden_size; ++i) set_bound(t, i, -sum_unit(config_.hidden_size));
  }

  void bound_qkv(const Task& task) {
    const LayerWeights& layer = weights_.layer(task.layer_idx);
    const LayerConfig& shape = config_.layers[task.layer_idx];
    for (uint32_t t = 0; t < input_->num_tokens; ++t) {
      const Rows sums = products(layer.qkv, input_row(task.input, t, config_.hidden_size, layer.qkv.k), true);
      for (uint32_t i = 0; i < layer.qkv_tiles.size(); ++i)
        for (uint32_t row = 0; row < 16; ++row) {
          const QkvTile& tile = layer.qkv_tiles[i];
          const int32_t dim = qkv_tile_element(tile, shape, row);
          if (dim < 0) continue;
          double sum = sums[i * 16 + row];
          if (tile.rotary) sum += sums[i * 16 + (row + 8) % 16];
          if (tile.part == QkvTile::Part::v) sum *= std::fabs(config_.value_scale);
          const double bound = sum_unit(layer.qkv.k + 8) * sum;
          if (tile.part == QkvTile::Part::q) set_bound(t, tile.head_idx * shape.qk_head_dim + dim, bound);
          else kv_bounds_[{t, tile.part == QkvTile::Part::v, tile.head_idx, dim}] = bound;
        }
    }
  }

  /// Scores are off by e; their exponentials relatively by 2 e and the units of exp; so is the weighted mean of v.
  void bound_attention(const Task& task) {
    const LayerConfig& shape = config_.layers[task.layer_idx];
    for (uint32_t t = 0; t < input_->num_tokens; ++t)
      for (uint32_t h = 0; h < shape.num_q_heads; ++h) {
        const uint32_t end = input_->positions[t] + 1;
        const uint32_t begin = shape.window_tokens && end > shape.window_tokens ? end - shape.window_tokens : 0;
        Rows q(shape.qk_head_dim), k(shape.qk_head_dim), v(shape.v_head_dim);
        ref_buffers_.read(kQ, t, h * shape.qk_head_dim, shape.qk_head_dim, q.data());
        double largest_score = 0.0, largest_v = 0.0;
        for (uint32_t j = begin; j < end; ++j) {
          ref_kv_.read(ref::KeyValues::Part::k, task.layer_idx, 0, h / shape.q_per_kv(), j, k.data());
          ref_kv_.read(ref::KeyValues::Part::v, task.layer_idx, 0, h / shape.q_per_kv(), j, v.data());
          double score = 0.0;
          for (uint32_t d = 0; d < shape.qk_head_dim; ++d) score += std::fabs(q[d] * k[d]);
          largest_score = std::max(largest_score, score / std::sqrt(double(shape.qk_head_dim)));
          for (double value : v) largest_v = std::max(largest_v, std::fabs(value));
        }
        const double score_error = sum_unit(shape.qk_head_dim) * largest_score;
        const double bound = largest_v * (4 * score_error + 2 * (end - begin + 32) * kUnit);
        for (uint32_t d = 0; d < shape.v_head_dim; ++d) set_bound(t, h * shape.v_head_dim + d, bound);
      }
  }

  void bound_linear(const Task& task) {
    const bool is_head = task.kind == TaskKind::lm_head, is_o = task.kind == TaskKind::o_proj;
    const LayerWeights* layer = is_head ? nullptr : &weights_.layer(task.layer_idx);
    const PackedMatrix& matrix = is_head ? weights_.lm_head()
                                 : task.kind == TaskKind::router ? layer->router
                                 : is_o ? layer->o_proj : layer->down;
    uint32_t width = config_.hidden_size;
    if (task.kind == TaskKind::down_proj) width = config_.intermediate_size;
    if (is_o) width = config_.layers[task.layer_idx].num_q_heads * config_.layers[task.layer_idx].v_head_dim;
    const bool is_residual = is_o || task.kind == TaskKind::down_proj;
    const uint32_t cols = is_residual ? config_.hidden_size : matrix.rows;
    for (uint32_t t = 0; t < input_->num_tokens; ++t) {
      const Rows sums = products(matrix, input_row(task.input, t, width, matrix.k), true);
      for (uint32_t i = 0; i < cols; ++i) set_bound(t, i, sum_unit(matrix.k) * sums[i]);
    }
  }

  void bound_gate_up(const PackedMatrix& matrix, uint32_t token, uint32_t act_row, uint32_t width) {
    const Rows x = input_row(kH, token, config_.hidden_size, matrix.k);
    const Rows sums = products(matrix, x, true), values = products(matrix, x, false);
    for (uint32_t i = 0; i < width; ++i) {
      const uint32_t gate = i / 16 * 32 + i % 16, up = gate + 16;
      const double silu = values[gate] / (1 + std::exp(-values[gate]));
      set_bound(act_row, i,  // |silu'| <= 1.1
                sum_unit(matrix.k + 16) * (1.1 * sums[gate] * std::fabs(values[up]) +
                                           std::fabs(silu) * sums[up] + std::fabs(silu * values[up])));
    }
  }

  void bound_expert_down(const Task& task) {
    for (uint32_t t = 0; t < input_->num_tokens; ++t)
      for (uint32_t i = 0; i < config_.hidden_size; ++i) set_bound(t, i, 0.0);
    for_each_slot([&](uint32_t slot, uint32_t expert) {
      const PackedMatrix& matrix = weights_.layer(task.layer_idx).expert_down[expert];
      const Rows sums = products(
          matrix, input_row(kAct, slot, config_.expert_intermediate_size, matrix.k), true);
      const RouteTable table = route();
      for (uint32_t i = 0; i < config_.hidden_size; ++i)
        bounds_[{table.slot_token[slot], i}] +=
            table.slot_weight[slot] * sum_unit(matrix.k + config_.experts_per_token) * sums[i];
    });
  }

  void for_each_slot(const std::function<void(uint32_t, uint32_t)>& visit) const {
    const RouteTable table = route();
    for (uint32_t i = 0; i < *table.num_active; ++i)
      for (uint32_t slot = table.slot_begin[i]; slot < table.slot_begin[i + 1]; ++slot)
        visit(slot, table.active_experts[i]);
  }

  void count(const Task& task, double cpu_value, double ref_value, double bound) {
    const std::string kind = task_kind_name(task.kind);
    const double difference = std::fabs(cpu_value - ref_value);
    ++result.num_compared[kind];
    if (!(difference <= bound)) ++result.num_outside[kind];
    if (bound > 0) result.worst[kind] = std::max(result.worst[kind], difference / bound);
  }

  void compare_task(const Task& task) {
    if (task.kind == TaskKind::select_experts) return compare_route(task);
    if (task.kind == TaskKind::sample) return;
    const cpu::PlanState& state = *plans_[0];
    if (task.kind == TaskKind::embed) {
      count(task, std::memcmp(state.buffer(kX), ref_buffers_.data(kX), bytes(kX)), 0.0, 0.0);
      return;
    }
    const bool is_bf16 = plan_.buffers()[task.output].element_bytes == 2;
    for (const auto& [place, bound] : bounds_) {
      double ref_value = 0.0;
      ref_buffers_.read(task.output, place.first, place.second, 1, &ref_value);
      const double cpu_value =
          is_bf16 ? double{bf16_to_f32(state.bf16_row(task.output, place.first)[place.second])}
                  : double{state.f32_row(task.output, place.first)[place.second]};
      const double sum_error = bound < 0 ? -bound * std::fabs(ref_value) : bound;  // negative: relative
      const double size = std::max(std::fabs(ref_value), std::fabs(cpu_value));
      count(task, cpu_value, ref_value, sum_error + (is_bf16 ? kBf16Unit : 2 * kUnit) * size);
    }
    if (task.kind == TaskKind::qkv_proj) compare_kv(task);
  }

  /// Then copies the reference's rows, so that attention starts from equal bytes.
  void compare_kv(const Task& task) {
    for (const auto& [place, bound] : kv_bounds_) {
      const auto& [t, is_v, head, dim] = place;
      const uint32_t pos = input_->positions[t];
      const auto row = [&](KvCache& cache) {
        return is_v ? cache.v_row(task.layer_idx, 0, head, pos) : cache.k_row(task.layer_idx, 0, head, pos);
      };
      const double ref_value = bf16_to_f32(row(ref_cache_)[dim]);
      count(task, bf16_to_f32(row(cpu_cache_)[dim]), ref_value, bound + kBf16Unit * std::fabs(ref_value));
      row(cpu_cache_)[dim] = row(ref_cache_)[dim];
    }
  }

  /// Equal logits must give the same experts in the same slots, and weights to a few units.
  void compare_route(const Task& task) {
    const RouteTable ref_table = route(), cpu_table = plans_[0]->route;
    const uint32_t num_active = *ref_table.num_active, num_slots = ref_table.slot_begin[num_active];
    bool is_equal = *cpu_table.num_active == num_active;
    for (uint32_t i = 0; is_equal && i < num_active; ++i)
      is_equal = cpu_table.active_experts[i] == ref_table.active_experts[i] &&
                 cpu_table.slot_begin[i + 1] == ref_table.slot_begin[i + 1];
    for (uint32_t s = 0; is_equal && s < num_slots; ++s)
      is_equal = cpu_table.slot_token[s] == ref_table.slot_token[s];
    count(task, is_equal, 1.0, 0.0);
    for (uint32_t s = 0; is_equal && s < num_slots; ++s)
      count(task, cpu_table.slot_weight[s], ref_table.slot_weight[s],
            (config_.experts_per_token + 24) * kUnit * ref_table.slot_weight[s]);
  }

  /// All buffers but the task's output must be as they were, on both sides.
  void count_strays(const Task& task, const std::vector<std::vector<uint8_t>>& inputs) {
    for (uint16_t id = kX; id <= kLogits; ++id) {
      if (id == task.output || !bytes(id)) continue;
      result.num_strays += std::memcmp(inputs[id].data(), ref_buffers_.data(id), bytes(id)) != 0;
      if (!before_cpu_task)
        result.num_strays += std::memcmp(inputs[id].data(), plans_[0]->buffer(id), bytes(id)) != 0;
    }
  }

  const ModelConfig& config_;
  const Weights& weights_;
  Plan plan_;
  ref::Buffers ref_buffers_;
  ref::KeyValues ref_kv_;
  ref::Ops ref_ops_;
  Activations activations_;
  KvCache ref_cache_, cpu_cache_;
  std::vector<std::unique_ptr<cpu::PlanState>> plans_;
  cpu::Step step_;
  std::unique_ptr<cpu::Worker> worker_;
  const StepInput* input_ = nullptr;
  std::vector<uint8_t> old_x_;
  std::map<std::pair<uint32_t, uint32_t>, double> bounds_;
  std::map<std::tuple<uint32_t, bool, uint32_t, int32_t>, double> kv_bounds_;
};

}  // namespace fixture
