// Every op of the CPU executor against the reference op, from equal inputs; and packed weights against the formats.
#include "core/numeric.h"
#include "lock_step.h"
#include "weights/pack.h"

#include "check.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

using Control = std::function<void(const Task&, cpu::PlanState&)>;

/// 40 tokens in steps of 1, 7 and 8 rows: past the window, over several row groups.
LockStepResult lock_step(const Weights& ref_weights, const Weights& cpu_weights,
                         const std::string& backend, const Control& control = {},
                         Activations activations = Activations::bf16) {
  LockStep run(ref_weights, cpu_weights, backend, 8, activations);
  run.before_cpu_task = control;
  const std::vector<int32_t> tokens = random_tokens(ref_weights.config(), 40, 3);
  for (uint32_t begin = 0, i = 0; begin < 40; ++i) {
    const uint32_t sizes[] = {8, 1, 7}, end = std::min(40u, begin + sizes[i % 3]);
    run.run(tokens, begin, end);
    begin = end;
  }
  return run.result;
}

/// A model whose CPU side differs from the reference in `change`; the op named must show it.
void control(const char* kind, const std::function<void(ModelConfig&)>& change) {
  const ModelConfig config = small_quantised();
  ModelConfig wrong = config;
  change(wrong);
  const Weights ref_weights = Weights::synthetic(config, 5), cpu_weights = Weights::synthetic(wrong, 5);
  LockStepResult result = lock_step(ref_weights, cpu_weights, runnable_cpu_backends().back());
  CHECK(result.num_outside[kind] > 0);
  for (const auto& [other, count] : result.num_outside)
    if (other != kind && count)
      check::report(__FILE__, __LINE__, std::string(kind) + " control also moved " + other);
}

/// Random weights whose embedding and head are F32 values in [-1, 1) that BF16 does not hold.
struct WideWeights {
  Weights weights;
  std::vector<cpu::AlignedBytes> tables;

  explicit WideWeights(const ModelConfig& config) : weights(Weights::synthetic(config, 5)) {
    const bool is_tied = weights.lm_head().data == weights.embed().data;
    widen(weights.embed());
    if (is_tied) const_cast<PackedMatrix&>(weights.lm_head()) = weights.embed();
    else widen(weights.lm_head());
  }

  /// Drops the bits that BF16 does not have.
  void truncate(const PackedMatrix& matrix) {
    auto* words = reinterpret_cast<uint32_t*>(const_cast<uint8_t*>(matrix.data));
    for (uint64_t i = 0; i < matrix.bytes() / 4; ++i) words[i] &= 0xffff0000u;
  }

 private:
  void widen(const PackedMatrix& matrix) {
    const uint32_t hidden = weights.config().hidden_size;
    tables.emplace_back(matrix.num_row_groups() * row_group_bytes(PackedFormat::f32, matrix.k));
    std::vector<float> values(uint64_t{kTileRows} * hidden);
    for (uint32_t group = 0; group < matrix.num_row_groups(); ++group) {
      std::array<PackRow, kTileRows> rows;
      for (float& value : values) value = static_cast<float>(next() >> 40) * 0x1p-23f - 1.0f;
      for (uint32_t i = 0; i < kTileRows; ++i)
        rows[i].codes = reinterpret_cast<const std::byte*>(&values[uint64_t{i} * hidden]);
      pack_rows(PackedFormat::f32, hidden, matrix.k, rows,
                tables.back().data() + group * row_group_bytes(PackedFormat::f32, matrix.k));
    }
    auto& wide = const_cast<PackedMatrix&>(matrix);
    wide.data = tables.back().data();
    wide.format = PackedFormat::f32;
  }
  uint64_t next() { return state_ = state_ * 6364136223846793005u + 1442695040888963407u; }

  uint64_t state_ = 77;
};

}  // namespace

TEST_CASE("every op stays within its bound, on every backend, for every tiny model") {
  std::vector<test_configs::NamedConfig> configs = test_configs::tiny_configs();
  configs.push_back({"small_quantised", small_quantised()});
  std::map<std::string, uint64_t> compared;
  for (const auto& [name, config] : configs) {
    const Weights weights = Weights::synthetic(config, 5);
    for (const std::string& backend : runnable_cpu_backends()) {
      const LockStepResult result = lock_step(weights, weights, backend);
      CHECK_EQ(result.num_strays, 0u);
      for (const auto& [kind, count] : result.num_outside)
        if (count)
          check::report(__FILE__, __LINE__,
                        name + " " + backend + " " + kind + ": " + std::to_string(count) +
                            " outside, worst " + std::to_string(result.worst.at(kind)));
      for (const auto& [kind, count] : result.num_compared) compared[kind] += count;
    }
  }
  // A kind that never ran proves nothing. Those of the draft: see test_draft_ops.cpp.
  for (uint16_t kind = 0; kind < static_cast<uint16_t>(TaskKind::context_fc); ++kind)
    if (static_cast<TaskKind>(kind) != TaskKind::sample)
      CHECK(compared[task_kind_name(static_cast<TaskKind>(kind))] > 0);
}

TEST_CASE("with INT8 activations every op stays within its bound of the reference with the same rounding") {
  const ModelConfig config = small_quantised();
  const Weights weights = Weights::synthetic(config, 5);
  for (const std::string& backend : runnable_cpu_backends()) {
    LockStepResult result = lock_step(weights, weights, backend, {}, Activations::int8);
    CHECK_EQ(result.num_strays, 0u);
    CHECK_EQ(result.outside(), 0u);
    CHECK(result.num_compared["expert_gate_up"] > 0 && result.num_compared["expert_down"] > 0);
  }
  // Control: against BF16 activations the experts, and nothing else, are outside.
  const std::string backend = runnable_cpu_backends().back();
  LockStep mixed(weights, weights, backend, 8, Activations::int8, Activations::bf16);
  mixed.run(random_tokens(config, 8, 3), 0, 8);
  const uint64_t gate_up = mixed.result.num_outside["expert_gate_up"];
  const uint64_t down = mixed.result.num_outside["expert_down"];
  CHECK(gate_up > 0 && down > 0);
  CHECK_EQ(mixed.result.outside(), gate_up + down);
}

TEST_CASE("F32 embeddings and heads: rows are rounded as the reference does, logits are within their bound") {
  std::vector<test_configs::NamedConfig> configs = test_configs::tiny_configs();
  configs.push_back({"small_quantised", small_quantised()});
  for (const auto& [name, config] : configs) {
    const WideWeights wide(config);
    for (const std::string& backend : runnable_cpu_backends()) {
      LockStepResult result = lock_step(wide.weights, wide.weights, backend);
      if (result.outside()) check::report(__FILE__, __LINE__, name + " " + backend);
      CHECK(result.num_compared["embed"] > 0 && result.num_compared["lm_head"] > 0);
      CHECK_EQ(result.num_strays, 0u);
    }
  }
  // Controls: a gather that cuts the low bits off instead of rounding, a head that lost them.
  const WideWeights wide(small_quantised());
  WideWeights cut_embed(small_quantised()), cut_head(small_quantised());
  cut_embed.truncate(cut_embed.weights.embed());
  cut_head.truncate(cut_head.weights.lm_head());
  const std::string backend = runnable_cpu_backends().back();
  LockStepResult result = lock_step(wide.weights, cut_embed.weights, backend);
  CHECK(result.num_outside["embed"] > 0 && result.outside() == result.num_outside["embed"]);
  result = lock_step(wide.weights, cut_head.weights, backend);
  CHECK(result.num_outside["lm_head"] > 0 && result.outside() == result.num_outside["lm_head"]);
}

TEST_CASE("the bounds see every wrong setting, at the op that uses it") {
  control("attention", [](ModelConfig& c) { c.layers[1].window_tokens += 1; });
  control("attention", [](ModelConfig& c) { c.layers[1].window_tokens -= 1; });
  control("qkv_proj", [](ModelConfig& c) { c.layers[2].rope_theta *= 1.5; });
  control("qkv_proj", [](ModelConfig& c) { c.value_scale *= 1.02; });
  control("rms_norm", [](ModelConfig& c) { c.rms_norm_eps = 0.03; });
  control("select_experts", [](ModelConfig& c) { c.routed_scaling_factor *= 1.0001; });
  control("select_experts", [](ModelConfig& c) { c.norm_topk_prob = false; });
}

TEST_CASE("the bounds see swapped experts, swapped slots and a wrong row") {
  const Weights weights = Weights::synthetic(small_quantised(), 5);
  const std::string backend = runnable_cpu_backends().back();
  const auto found = [&](TaskKind kind, const std::function<void(cpu::PlanState&)>& change) {
    LockStepResult result =
        lock_step(weights, weights, backend, [&](const Task& task, cpu::PlanState& state) {
          if (task.kind == kind) change(state);
        });
    return result.num_outside[task_kind_name(kind)] > 0;
  };
  const auto swap_experts = [](cpu::PlanState& s) {
    std::swap(s.route.active_experts[0], s.route.active_experts[1]);
  };
  CHECK(found(TaskKind::expert_gate_up, swap_experts));
  CHECK(found(TaskKind::expert_down, swap_experts));
  CHECK(found(TaskKind::expert_down, [](cpu::PlanState& s) {
    std::swap(s.route.slot_weight[0], s.route.slot_weight[1]);
  }));
  CHECK(found(TaskKind::o_proj, [](cpu::PlanState& s) { s.bf16_row(kAttn, 0)[3] ^= 0x80; }));
  CHECK(found(TaskKind::lm_head, [](cpu::PlanState& s) { s.bf16_row(kH, 0)[159] = 0; }));
  CHECK(!found(TaskKind::sample, [](cpu::PlanState&) {}));
}

TEST_CASE("the bounds see a dropped sink") {
  const Weights weights = Weights::synthetic(small_quantised(), 5);
  const Weights damaged = Weights::synthetic(small_quantised(), 5);
  const_cast<float*>(damaged.layer(1).sink_logits)[2] = -1e30f;
  LockStepResult result = lock_step(weights, damaged, runnable_cpu_backends().back());
  CHECK(result.num_outside["attention"] > 0);
  CHECK_EQ(result.outside(), result.num_outside["attention"]);
}

TEST_CASE("the bounds see one missing block of 32 weights") {
  const Weights weights = Weights::synthetic(small_quantised(), 5);
  const Weights damaged = Weights::synthetic(small_quantised(), 5);
  const PackedMatrix& matrix = damaged.layer(2).expert_down[4];
  // k = 96: one short tile of three blocks per row group; codes of the last block of group 3.
  std::memset(const_cast<uint8_t*>(matrix.row_group(3)) + 2 * 256, 0, 256);
  LockStepResult result = lock_step(weights, damaged, runnable_cpu_backends().back());
  CHECK(result.num_outside["expert_down"] > 0);
  CHECK_EQ(result.outside(), result.num_outside["expert_down"]);
}

TEST_CASE("packed_weight and unpack_row_group read the same numbers, and those of the formats") {
  const Weights weights = Weights::synthetic(small_quantised(), 5);
  const LayerWeights& layer = weights.layer(1);
  for (const PackedMatrix* m : {&layer.qkv, &layer.o_proj, &layer.router, &layer.expert_down[0]}) {
    std::vector<double> unpacked(uint64_t{m->k} * 16);
    uint64_t num_different = 0, num_nonzero = 0;
    for (uint32_t g = 0; g < m->num_row_groups(); ++g) {
      ref::unpack_row_group(*m, g, unpacked.data());
      for (uint32_t k = 0; k < m->k; ++k)
        for (uint32_t i = 0; i < 16; ++i) {
          num_different += unpacked[k * 16 + i] != ref::packed_weight(*m, g * 16 + i, k);
          num_nonzero += unpacked[k * 16 + i] != 0.0;
        }
    }
    CHECK_EQ(num_different, 0u);
    CHECK(num_nonzero > 0);
  }
  // One MXFP4 tile by hand: bytes 0x2A with scale 127 are -1 (k = 0) and +1 (k = 4); 0x10 with scale 120 is 2^-8.
  alignas(64) uint8_t tile[320] = {};
  std::memset(tile + 256, 127, 16);
  tile[0] = 0x2A;
  tile[4] = 0x10;
  tile[256 + 1] = 120;
  const PackedMatrix matrix{tile, PackedFormat::mxfp4, 16, 32};
  CHECK_EQ(ref::packed_weight(matrix, 0, 0), -1.0);
  CHECK_EQ(ref::packed_weight(matrix, 0, 4), 1.0);
  CHECK_EQ(ref::packed_weight(matrix, 1, 0), 0.0);
  CHECK_EQ(ref::packed_weight(matrix, 1, 4), 0x1p-8);
}

TEST_CASE("ties in the router go to the lowest index, NaN never wins") {
  ModelConfig config = small_quantised();
  const Weights weights = Weights::synthetic(config, 5);
  const Plan plan = Plan::build(config, plan_options(1, 2, 1));
  std::vector<std::unique_ptr<cpu::PlanState>> plans;
  plans.push_back(std::make_unique<cpu::PlanState>(plan, config));
  const cpu::Kernels& kernels = cpu::select_kernels("cpu-generic");
  cpu::Step step;
  cpu::Worker worker(weights, kernels, cpu::ScratchSizes(weights, kernels, plans), step);
  StepInput input;
  input.num_tokens = 2;
  step.plan = plans[0].get();
  step.input = &input;
  Task select{};
  select.kind = TaskKind::select_experts;
  select.layer_idx = 1;
  select.input = kRouterLogits;
  const float* bias = weights.layer(1).router_bias;
  for (uint32_t e = 0; e < 10; ++e) {
    // sigma + bias must be equal for all: possible only without bias, so undo it where it exists.
    const float sigma = 0.5f - (bias ? bias[e] : 0.0f);
    plans[0]->f32_row(kRouterLogits, 0)[e] = bias && bias[e] != 0.0f ? std::log(sigma / (1 - sigma)) : 0.0f;
    plans[0]->f32_row(kRouterLogits, 1)[e] = NAN;
  }
  plans[0]->f32_row(kRouterLogits, 1)[9] = -80.0f;
  cpu::run_task(select, worker);
  const RouteTable& route = plans[0]->route;
  bool has_bias = false;
  for (uint32_t e = 0; bias && e < 10; ++e) has_bias |= bias[e] != 0.0f;
  std::vector<std::vector<uint32_t>> chosen(2);
  for (uint32_t i = 0; i < *route.num_active; ++i)
    for (uint32_t s = route.slot_begin[i]; s < route.slot_begin[i + 1]; ++s)
      chosen[route.slot_token[s]].push_back(route.active_experts[i]);
  CHECK_EQ(chosen[0].size(), 3u);
  if (!has_bias) CHECK(chosen[0] == std::vector<uint32_t>({0, 1, 2}));
  CHECK(chosen[1] == std::vector<uint32_t>({0, 1, 9}));
}

CHECK_MAIN()
