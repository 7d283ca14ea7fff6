// Runs the draft's tasks of one round on the CPU ops (or what else computes them) and the reference ops, each task from
// equal bytes, and compares its output under a bound derived from its inputs: see lock_step.h, whose units these are.
#pragma once

#include "core/numeric.h"
#include "draft_run.h"
#include "lock_step.h"

#include <utility>

namespace fixture {

/// Whose tasks are compared with the reference ops.
class DraftSubject {
 public:
  virtual ~DraftSubject() = default;

  /// Takes over features, keys and values of positions [0, num_positions) from a cache of the reference.
  virtual void copy_cache(KvCache& from, uint32_t num_positions) = 0;
  /// Does all that `task`, of the reference's plan, does, from the bytes of `inputs`.
  virtual void run(const Task& task, const StepInput& input, const ref::Buffers& inputs) = 0;
  /// What it left in a buffer, and in a draft layer of its cache; `col`: K of all heads, then V of all heads.
  virtual double read(uint16_t buffer, uint32_t row, uint32_t col) = 0;
  virtual double read_context(uint32_t layer, uint32_t pos, uint32_t col) = 0;
  /// How far a weight of attention may be off, beyond FP32.
  virtual double attention_unit() const { return 0.0; }
};

/// The CPU ops of a backend.
class CpuDraftSubject final : public DraftSubject {
 public:
  /// `draft` differs from the model's in what a negative control introduces.
  CpuDraftSubject(const DraftModel& model, const DraftWeights& draft, const std::string& backend, const Plan& plan)
      : config_(model.style.config), draft_config_(model.style.draft), kernels_(cpu::select_kernels(backend)),
        cache_(config_, draft_cache_options(), &draft_config_) {
    plans_.push_back(std::make_unique<cpu::PlanState>(plan, config_, &draft.config()));
    const cpu::ScratchSizes sizes(model.weights, kernels_, plans_, &draft);
    worker_ = std::make_unique<cpu::Worker>(model.weights, kernels_, sizes, step_, &draft);
    worker_->fit_segments(cache_);
    cache_.reserve(0, draft_cache_options().max_context);
  }
  static KvCache::Options draft_cache_options() { return {.max_context = 128, .max_step_tokens = 16, .num_seqs = 1}; }

  void copy_cache(KvCache& from, uint32_t num_positions) override {
    const uint32_t width = static_cast<uint32_t>(draft_config_.target_layer_ids.size()) * config_.hidden_size;
    for (uint32_t pos = 0; pos < num_positions; ++pos) {
      std::memcpy(cache_.feature_row(0, pos), from.feature_row(0, pos), 2 * width);
      for (uint32_t l = config_.num_layers; l < config_.num_layers + draft_config_.num_layers; ++l)
        for (uint32_t h = 0; h < draft_config_.num_kv_heads; ++h) {
          std::memcpy(cache_.k_row(l, 0, h, pos), from.k_row(l, 0, h, pos), 2 * draft_config_.qk_head_dim);
          std::memcpy(cache_.v_row(l, 0, h, pos), from.v_row(l, 0, h, pos), 2 * draft_config_.v_head_dim);
        }
    }
  }
  void run(const Task& task, const StepInput& input, const ref::Buffers& inputs) override {
    cpu::PlanState& state = *plans_[0];
    StepOutput output;
    state.fill_tables(input, cache_);
    step_ = {&state, &cache_, &input, &output, 1};
    for (uint16_t id = kContext; id <= kDraftLogits; ++id)
      if (id != kContextKv && id != kBlock)
        std::memcpy(state.buffer(id), inputs.data(id), state.plan.buffers()[id].bytes);
    cpu::run_task(task, *worker_);
  }
  double read(uint16_t buffer, uint32_t row, uint32_t col) override {
    const cpu::PlanState& state = *plans_[0];
    return buffer == kDraftLogits ? double{state.f32_row(buffer, row)[col]}
                                  : double{bf16_to_f32(state.bf16_row(buffer, row)[col])};
  }
  double read_context(uint32_t layer, uint32_t pos, uint32_t col) override {
    return context_value(cache_, draft_config_, config_.num_layers + layer, pos, col);
  }
  static double context_value(KvCache& cache, const DraftConfig& draft, uint32_t layer, uint32_t pos, uint32_t col) {
    const uint32_t qk = draft.qk_head_dim, vd = draft.v_head_dim, v_begin = draft.num_kv_heads * qk;
    if (col < v_begin) return bf16_to_f32(cache.k_row(layer, 0, col / qk, pos)[col % qk]);
    return bf16_to_f32(cache.v_row(layer, 0, (col - v_begin) / vd, pos)[(col - v_begin) % vd]);
  }

 private:
  const ModelConfig& config_;
  const DraftConfig& draft_config_;
  const cpu::Kernels& kernels_;
  KvCache cache_;
  std::vector<std::unique_ptr<cpu::PlanState>> plans_;
  cpu::Step step_;
  std::unique_ptr<cpu::Worker> worker_;
};

class DraftLockStep {
 public:
  using Vector = std::vector<double>;
  static constexpr uint32_t kPosition = 75;  ///< of the anchor: past a page and the windows

  /// `backend`: whose fused norms are expected. `num_context_rows`: made by the round; those before are random.
  DraftLockStep(const DraftModel& model, PlanOptions::FuseNorm fuse_norm, const std::string& backend = "cpu-generic",
                uint32_t num_context_rows = 11)
      : config_(model.style.config),
        draft_config_(model.style.draft),
        weights_(model.weights),
        draft_(model.draft),
        context_begin_(kPosition - num_context_rows),
        plan_(build(fuse_norm)),
        kernels_(cpu::select_kernels(backend)),
        width_({.mode = DraftOptions::Mode::fixed}, draft_config_.block_size),
        state_(request(), width_, config_.vocab_size, draft_config_.block_size),
        ref_buffers_(plan_, false),
        ref_kv_(config_, false, &draft_config_),
        ref_ops_(weights_, false, &draft_),
        ref_cache_(config_, CpuDraftSubject::draft_cache_options(), &draft_config_) {
    ref_kv_.select(ref_cache_);
    fill_cache();
    state_.block[0] = 7;
    state_.position = kPosition;
    state_.num_context = context_begin_;
    state_.begin();
  }

  const Plan& plan() const { return plan_; }
  const StepInput& input() const { return state_.input; }

  void run(DraftSubject& subject) {
    subject_ = &subject;
    subject.copy_cache(ref_cache_, kPosition);
    StepOutput output;
    for (const Task& task : plan_.tasks(0)) {
      if (task.kind < TaskKind::context_fc || task.kind > TaskKind::draft_lm_head) continue;
      bounds_.clear();
      bound_task(task);
      subject.run(task, state_.input, ref_buffers_);
      ref_ops_.run(task, {&plan_, &ref_buffers_, &ref_kv_, &state_.input, &output});
      compare(task);
    }
  }

  LockStepResult result;

 private:
  struct Place {
    uint16_t buffer;  ///< kContextKv: layer, position and element of a head stand for row and column
    uint32_t layer, row, col;
    auto operator<=>(const Place&) const = default;
  };

  Plan build(PlanOptions::FuseNorm fuse_norm) const {
    PlanOptions options = plan_options(1, draft_config_.block_size, draft_config_.block_size, fuse_norm);
    options.is_round = true;
    options.max_context_rows = 16;
    return Plan::build(config_, options, &draft_config_);
  }
  RoundRequest request() const {
    RoundRequest request;
    request.params = &params_;
    request.max_tokens = 1000;
    request.max_context = 128;
    request.max_context_rows = 16;
    return request;
  }

  /// Random features, and random keys and values; those of the rows of context are made anew.
  void fill_cache() {
    uint64_t random = 1;
    const auto fill = [&](uint16_t* row, uint64_t count) {
      for (uint64_t i = 0; i < count; ++i) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        row[i] = f32_to_bf16(static_cast<float>(static_cast<int64_t>(random) >> 32) * 0x1p-31f);
      }
    };
    ref_cache_.reserve(0, 128);
    for (uint32_t pos = 0; pos < kPosition; ++pos) {
      fill(ref_cache_.feature_row(0, pos), draft_config_.target_layer_ids.size() * config_.hidden_size);
      for (uint32_t l = config_.num_layers; l < config_.num_layers + draft_config_.num_layers; ++l)
        for (uint32_t h = 0; h < draft_config_.num_kv_heads; ++h) {
          fill(ref_cache_.k_row(l, 0, h, pos), draft_config_.qk_head_dim);
          fill(ref_cache_.v_row(l, 0, h, pos), draft_config_.v_head_dim);
        }
    }
  }

  /// W x for all rows, and the bound of its error: rounding of the sums, and what the two x differ.
  struct Products {
    Vector values, errors;
  };
  Products products(const PackedMatrix& matrix, const Vector& x, const Vector& x_error) const {
    Products out{Vector(matrix.rows), Vector(matrix.rows)};
    Vector w(uint64_t{matrix.k} * 16);
    for (uint32_t g = 0; g < matrix.num_row_groups(); ++g) {
      ref::unpack_row_group(matrix, g, w.data());
      for (size_t k = 0; k < x.size(); ++k)
        for (uint32_t i = 0; i < 16; ++i) {
          out.values[g * 16 + i] += w[k * 16 + i] * x[k];
          out.errors[g * 16 + i] +=
              std::fabs(w[k * 16 + i]) * ((matrix.k + 8) * kUnit * std::fabs(x[k]) + x_error[k]);
        }
    }
    return out;
  }
  Products plain_products(const PackedMatrix& matrix, uint16_t buffer, uint32_t row, uint32_t width) const {
    Vector x(width);
    ref_buffers_.read(buffer, row, 0, width, x.data());
    return products(matrix, x, Vector(width));
  }

  /// Of a normalised row. Fused: both sides' BF16 rows are made here, so that a rounding that goes the other way is in
  /// the bound.
  Products normed_products(const PackedMatrix& matrix, uint16_t buffer, uint32_t row, const float* weight) const {
    const uint32_t n = config_.hidden_size;
    if (plan_.buffers()[kDraftH].bytes) return plain_products(matrix, buffer == kContext ? kContextH : kDraftH, row, n);
    Vector x(n), error(n);
    ref_buffers_.read(buffer, row, 0, n, x.data());
    std::vector<uint16_t> in(n), out(n);
    double sum = 0.0;
    for (uint32_t i = 0; i < n; ++i) in[i] = f32_to_bf16(static_cast<float>(x[i])), sum += x[i] * x[i];
    kernels_.rms_norm(in.data(), weight, static_cast<float>(draft_config_.rms_norm_eps), n, out.data());
    const double factor = 1.0 / std::sqrt(sum / n + draft_config_.rms_norm_eps);
    for (uint32_t i = 0; i < n; ++i) {
      x[i] = bf16_to_f32(f32_to_bf16(static_cast<float>(x[i] * factor * weight[i])));
      error[i] = std::fabs(bf16_to_f32(out[i]) - x[i]);
      if (error[i] > kBf16Unit * std::fabs(x[i])) ++result_.num_strays;
    }
    return products(matrix, x, error);
  }

  void bound_task(const Task& task) {
    const DraftLayerWeights* layer = task.layer_idx == kNoLayer ? nullptr : &draft_.layer(task.layer_idx);
    const uint32_t rows = draft_config_.block_size, hidden = config_.hidden_size;
    switch (task.kind) {
      case TaskKind::context_fc: return bound_context_fc();
      case TaskKind::context_kv:
        for (uint32_t r = 0; r < state_.input.num_context_rows; ++r)
          for (uint32_t l = 0; l < draft_config_.num_layers; ++l)
            bound_heads(draft_.layer(l), l, r, true,
                        normed_products(draft_.layer(l).qkv, kContext, r, draft_.hidden_norm()));
        return;
      case TaskKind::context_norm:  // one rounding
      case TaskKind::draft_norm:
        for (uint32_t r = 0; r < (task.kind == TaskKind::draft_norm ? rows : state_.input.num_context_rows); ++r)
          for (uint32_t i = 0; i < hidden; ++i) bounds_[{task.output, 0, r, i}] = 0.0;
        return;
      case TaskKind::draft_qkv_proj:
        for (uint32_t r = 0; r < rows; ++r)
          bound_heads(*layer, 0, r, false, normed_products(layer->qkv, kDraftX, r, layer->attn_norm));
        return;
      case TaskKind::draft_attention: return bound_attention(task);
      case TaskKind::draft_o_proj:
      case TaskKind::draft_down_proj:
        for (uint32_t r = 0; r < rows; ++r) {
          const bool is_o = task.kind == TaskKind::draft_o_proj;
          const uint32_t width =
              is_o ? draft_config_.num_q_heads * draft_config_.v_head_dim : draft_config_.intermediate_size;
          const Products p = plain_products(is_o ? layer->o_proj : layer->down, task.input, r, width);
          for (uint32_t i = 0; i < hidden; ++i) bounds_[{kDraftX, 0, r, i}] = p.errors[i];
        }
        return;
      case TaskKind::draft_gate_up_proj:
        for (uint32_t r = 0; r < rows; ++r) bound_gate_up(*layer, r);
        return;
      case TaskKind::draft_lm_head:
        for (uint32_t r = 1; r < rows; ++r) {
          const Products p = normed_products(weights_.lm_head(), kDraftX, r, draft_.final_norm());
          const int32_t* ids = draft_.vocab_ids();
          for (uint32_t i = 0; i < plan_.shape().draft.vocab_size; ++i)
            bounds_[{kDraftLogits, 0, r - 1, i}] = p.errors[ids ? ids[i] : i];
        }
        return;
      default:  // draft_embed: the same bytes
        for (uint32_t r = 0; r < rows; ++r)
          for (uint32_t i = 0; i < hidden; ++i) bounds_[{kDraftX, 0, r, i}] = -1.0;
    }
  }

  void bound_context_fc() {
    for (uint32_t r = 0; r < state_.input.num_context_rows; ++r) {
      Vector x(draft_config_.target_layer_ids.size() * config_.hidden_size);
      ref_kv_.read_features(0, context_begin_ + r, x.data());
      const Products p = products(draft_.fc(), x, Vector(x.size()));
      for (uint32_t i = 0; i < config_.hidden_size; ++i) bounds_[{kContext, 0, r, i}] = p.errors[i];
    }
  }

  /// The norm's factor is off by at most |errors| / |values| and the units of its sum; a rotation adds its two errors.
  void bound_heads(const DraftLayerWeights& weights, uint32_t layer, uint32_t row, bool is_context, const Products& p) {
    const uint32_t num_q = draft_config_.num_q_heads, num_kv = draft_config_.num_kv_heads;
    const uint32_t qk = draft_config_.qk_head_dim, vd = draft_config_.v_head_dim;
    const uint32_t half = draft_config_.rotary_dim / 2;
    for (uint32_t h = is_context ? num_q : 0; h < num_q + num_kv; ++h) {
      Vector y(p.values.begin() + h * qk, p.values.begin() + (h + 1) * qk);
      Vector e(p.errors.begin() + h * qk, p.errors.begin() + (h + 1) * qk);
      if (const float* norm = h < num_q ? weights.q_norm : weights.k_norm) {
        double sum = 0.0, error_sum = 0.0;
        for (uint32_t d = 0; d < qk; ++d) sum += y[d] * y[d], error_sum += e[d] * e[d];
        const double factor = 1.0 / std::sqrt(sum / qk + draft_config_.rms_norm_eps);
        const double relative = std::sqrt(error_sum / sum) + (qk + 8) * kUnit;
        for (uint32_t d = 0; d < qk; ++d) {
          e[d] = std::fabs(norm[d]) * factor * (e[d] + 1.01 * relative * std::fabs(y[d]));
          y[d] *= norm[d] * factor;
        }
      }
      for (uint32_t d = 0; d < qk; ++d) {
        double bound = e[d] + 4 * kUnit * std::fabs(y[d]);
        if (d < 2 * half) {
          const uint32_t other = d < half ? d + half : d - half;
          bound += e[other] + 4 * kUnit * std::fabs(y[other]);
        }
        const bool is_q = h < num_q;
        const uint32_t col = (is_q ? h : h - num_q) * qk + d;
        bounds_[{is_context ? kContextKv : is_q ? kDraftQ : kDraftKv, layer, row, col}] = bound;
      }
    }
    for (uint32_t i = 0; i < num_kv * vd; ++i)
      bounds_[{is_context ? kContextKv : kDraftKv, layer, row, num_kv * qk + i}] =
          std::fabs(draft_config_.value_scale) * (p.errors[(num_q + num_kv) * qk + i] +
                                                  4 * kUnit * std::fabs(p.values[(num_q + num_kv) * qk + i]));
  }

  /// As in lock_step.h: all keys that any row may see bound the scores and the mean.
  void bound_attention(const Task& task) {
    const uint32_t qk = draft_config_.qk_head_dim, vd = draft_config_.v_head_dim;
    const uint32_t num_kv = draft_config_.num_kv_heads, window = draft_config_.window_tokens[task.layer_idx];
    for (uint32_t r = 0; r < draft_config_.block_size; ++r)
      for (uint32_t h = 0; h < draft_config_.num_q_heads; ++h) {
        const uint32_t kv_head = h / draft_config_.q_per_kv();
        const uint32_t end = kPosition + r + 1, begin = window ? std::min(end - window, kPosition) : 0;
        Vector q(qk), k(qk), v(vd);
        ref_buffers_.read(kDraftQ, r, h * qk, qk, q.data());
        double largest_score = 0.0, largest_v = 0.0;
        for (uint32_t j = begin; j < kPosition + draft_config_.block_size; ++j) {
          if (j < kPosition) {
            ref_kv_.read(ref::KeyValues::Part::k, config_.num_layers + task.layer_idx, 0, kv_head, j, k.data());
            ref_kv_.read(ref::KeyValues::Part::v, config_.num_layers + task.layer_idx, 0, kv_head, j, v.data());
          } else {
            ref_buffers_.read(kDraftKv, j - kPosition, kv_head * qk, qk, k.data());
            ref_buffers_.read(kDraftKv, j - kPosition, num_kv * qk + kv_head * vd, vd, v.data());
          }
          double score = 0.0;
          for (uint32_t d = 0; d < qk; ++d) score += std::fabs(q[d] * k[d]);
          largest_score = std::max(largest_score, score / std::sqrt(double(qk)));
          for (const double value : v) largest_v = std::max(largest_v, std::fabs(value));
        }
        const double score_error = (qk + 8) * kUnit * largest_score;
        const double bound =
            largest_v * (4 * score_error + 2 * (kPosition + 48) * kUnit + 2.1 * subject_->attention_unit());
        for (uint32_t d = 0; d < vd; ++d) bounds_[{kDraftAttn, 0, r, h * vd + d}] = bound;
      }
  }

  void bound_gate_up(const DraftLayerWeights& layer, uint32_t row) {
    const Products p = normed_products(layer.gate_up, kDraftX, row, layer.mlp_norm);
    for (uint32_t i = 0; i < draft_config_.intermediate_size; ++i) {
      const uint32_t gate = i / 16 * 32 + i % 16, up = gate + 16;
      const double silu = p.values[gate] / (1 + std::exp(-p.values[gate]));
      bounds_[{kDraftAct, 0, row, i}] = 1.1 * p.errors[gate] * std::fabs(p.values[up]) +  // |silu'| <= 1.1
                                        std::fabs(silu) * p.errors[up] + 24 * kUnit * std::fabs(silu * p.values[up]);
    }
  }

  void compare(const Task& task) {
    const std::string kind = task_kind_name(task.kind);
    for (const auto& [place, error] : bounds_) {
      double ref_value = 0.0, value = 0.0;
      const bool is_f32 = place.buffer == kDraftLogits;
      if (place.buffer == kContextKv) {
        const uint32_t pos = context_begin_ + place.row;
        ref_value = CpuDraftSubject::context_value(ref_cache_, draft_config_, config_.num_layers + place.layer, pos,
                                                   place.col);
        value = subject_->read_context(place.layer, pos, place.col);
      } else {
        ref_buffers_.read(place.buffer, place.row, place.col, 1, &ref_value);
        value = subject_->read(place.buffer, place.row, place.col);
      }
      const double size = std::max(std::fabs(ref_value), std::fabs(value));
      const double bound = error < 0 ? 0.0 : error + (is_f32 ? 2 * kUnit : kBf16Unit) * size;
      ++result.num_compared[kind];
      if (!(std::fabs(value - ref_value) <= bound)) ++result.num_outside[kind];
      if (bound > 0) result.worst[kind] = std::max(result.worst[kind], std::fabs(value - ref_value) / bound);
    }
    result.num_strays += std::exchange(result_.num_strays, 0);
    if (task.kind == TaskKind::context_kv) subject_->copy_cache(ref_cache_, kPosition);  // attention: from equal bytes
  }

  const ModelConfig& config_;
  const DraftConfig& draft_config_;
  const Weights& weights_;
  const DraftWeights& draft_;
  const uint32_t context_begin_;
  Plan plan_;
  const cpu::Kernels& kernels_;
  SamplingParams params_;
  DraftWidth width_;
  RoundState state_;
  ref::Buffers ref_buffers_;
  ref::KeyValues ref_kv_;
  ref::Ops ref_ops_;
  KvCache ref_cache_;
  DraftSubject* subject_ = nullptr;
  std::map<Place, double> bounds_;    // negative: the same bytes
  mutable LockStepResult result_;     // strays of normed_products
};

}  // namespace fixture
