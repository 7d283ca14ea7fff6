// A small model with all of MiMo's features, from one checkpoint for the CPU and for the CUDA
// kernels, and the executor that runs steps of it on the test's device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "checkpoint_fixture.h"
#include "cuda/executor.h"
#include "step_device.h"
#include "step_fixture.h"

namespace fixture {

/// Fused FP8 qkv, MXFP4 experts, a dense FP8 MLP, BF16 o_proj and head, FP32 router; full layers
/// without and window layers with sinks; more q heads than kv heads; a value scale.
inline ModelConfig device_config() {
  ModelConfig config = small_config();
  config.hidden_size = 160;
  config.vocab_size = 203;
  config.intermediate_size = 96;
  config.expert_intermediate_size = 96;
  config.num_experts = 7;
  config.experts_per_token = 3;
  config.max_position_embeddings = 4096;
  config.value_scale = 0.612;
  config.routed_scaling_factor = 1.5;
  set_four_layers(config, {8, 2, 48, 32, 16});
  return config;
}

/// Its first layers: a dense one that sees everything, then a MoE layer with a window.
inline ModelConfig first_layers(uint32_t num_layers) {
  ModelConfig config = device_config();
  config.num_layers = num_layers;
  config.layers.resize(num_layers);
  return config;
}

/// Values that keep activations of order one through all layers.
inline void fill_sensible(const ModelConfig& config, const std::string& name, std::string& bytes) {
  std::mt19937 random(static_cast<uint32_t>(std::hash<std::string>{}(name)));
  std::normal_distribution<float> normal;
  const auto ends = [&](const char* tail) { return name.ends_with(tail); };
  const auto fill = [&](auto make) {
    using T = decltype(make());
    for (size_t i = 0; i + sizeof(T) <= bytes.size(); i += sizeof(T)) {
      const T value = make();
      std::memcpy(bytes.data() + i, &value, sizeof value);
    }
  };
  const auto fill_bf16 = [&](float mean, float deviation) {
    fill([&] { return f32_to_bf16(mean + deviation * normal(random)); });
  };
  const float per_input = 1.0f / std::sqrt(static_cast<float>(config.hidden_size));
  if (ends("weight_scale_inv")) return fill([&] { return (1.0f + random() % 8 / 8.0f) / 2048; });
  if (ends("weight_scale")) return fill([&] { return static_cast<uint8_t>(121 + random() % 3); });
  if (ends("mlp.gate.weight")) {
    const auto make = [&] { return 2 * per_input * normal(random); };
    if (bytes.size() == uint64_t{4} * config.num_experts * config.hidden_size) return fill(make);
    return fill([&] { return f32_to_bf16(make()); });
  }
  if (ends("bias")) return fill_bf16(0.0f, 0.5f);
  if (ends("norm.weight") || ends("layernorm.weight")) return fill_bf16(1.0f, 0.2f);
  if (ends("embed_tokens.weight")) return fill_bf16(0.0f, 1.0f);
  if (ends("lm_head.weight")) return fill_bf16(0.0f, 2 * per_input);
  if (ends("o_proj.weight")) return fill_bf16(0.0f, 0.5f * per_input);
  if (ends("proj.weight") && config.linear_format == WeightFormat::plain && name.find("experts") == name.npos)
    return fill_bf16(0.0f, per_input);
  // FP8 and MXFP4 codes stay as they are: any are valid.
}

enum class Routing {
  random,  ///< near ties, of which another rounding makes another choice of experts
  clear,   ///< a token's experts are far ahead of the others, whatever the rounding
};

/// The first channels of an embedding say which experts the token has, and routers read little else.
inline void make_routing_clear(const ModelConfig& config, const std::string& name, std::string& bytes) {
  const auto edit = [&](auto type, const auto& change) {  // change(row, channel, float) -> float
    using T = decltype(type);
    for (uint64_t i = 0; i < bytes.size() / sizeof(T); ++i) {
      T value;
      std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
      const uint64_t row = i / config.hidden_size, channel = i % config.hidden_size;
      if constexpr (sizeof(T) == 4) value = change(row, channel, value);
      else value = f32_to_bf16(change(row, channel, bf16_to_f32(value)));
      std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
    }
  };
  if (name.ends_with("embed_tokens.weight")) {
    edit(bf16_t{}, [&](uint64_t token, uint64_t channel, float value) {
      if (channel >= config.num_experts) return value;
      return (token + channel) % config.num_experts < config.experts_per_token ? 6.0f : -6.0f;
    });
  } else if (name.ends_with("mlp.gate.weight")) {
    const auto change = [](uint64_t expert, uint64_t channel, float value) {
      return 0.1f * value + (channel == expert ? 0.5f : 0.0f);
    };
    const bool is_f32 = bytes.size() == uint64_t{4} * config.num_experts * config.hidden_size;
    is_f32 ? edit(0.0f, change) : edit(bf16_t{}, change);
  } else if (name.ends_with("e_score_correction_bias")) {
    edit(bf16_t{}, [](uint64_t, uint64_t, float value) { return 0.1f * value; });
  }
}

struct DeviceModel {
  ModelConfig config;
  writer::TempDir dir;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<Weights> host;

  explicit DeviceModel(const ModelConfig& model_config, Routing routing = Routing::random, DType router = DType::f32)
      : DeviceModel(model_config, router, [&](const std::string& name, std::string& bytes) {
          fill_sensible(model_config, name, bytes);
          if (routing == Routing::clear) make_routing_clear(model_config, name, bytes);
        }) {}
  DeviceModel(const ModelConfig& model_config, DType router, const Edit& fill) : config(model_config) {
    std::map<std::string, DType> dtypes;
    for (const ExpectedTensor& tensor : expected_tensors(config))
      if (tensor.name.ends_with("mlp.gate.weight")) dtypes[tensor.name] = router;
    write_checkpoint(dir, config, dtypes, fill);
    checkpoint = std::make_unique<Checkpoint>(Checkpoint::open(dir.path()));
    host = std::make_unique<Weights>(
        Weights::load(*checkpoint, config, {.num_threads = 1, .progress = {}}));
  }
  CudaWeights pack() const { return CudaWeights::load(*checkpoint, config, {{}, {.num_threads = 1, .progress = {}}}); }
};

/// The relative distances of rows of logits [rows, vocab], ascending.
inline std::vector<double> row_distances(const std::vector<float>& logits, const std::vector<float>& others,
                                         uint32_t vocab) {
  CHECK_EQ(logits.size(), others.size());
  if (logits.size() != others.size()) return {INFINITY};
  std::vector<double> distances;
  for (auto row = logits.begin(), other = others.begin(); row != logits.end(); row += vocab, other += vocab)
    distances.push_back(relative_distance({row, row + vocab}, {other, other + vocab}));
  std::sort(distances.begin(), distances.end());
  return distances;
}

/// The relative distance within which nine of ten rows of logits [rows, vocab] are. Of the others nothing is known: where a
/// router has a near tie, a row takes other experts.
inline double distance_of_most_rows(const std::vector<float>& logits, const std::vector<float>& others, uint32_t vocab) {
  const std::vector<double> distances = row_distances(logits, others, vocab);
  return distances[(9 * distances.size() + 9) / 10 - 1];
}

/// Whether logits [rows, vocab] are those of another device but for how sums of products are rounded, which no two
/// kinds of arithmetic do alike: most rows are within 2 % (1 % is usual), and in as many the same token is the best.
/// Within 2 % another one is best only at a near tie.
inline bool agree(const std::vector<float>& logits, const std::vector<float>& others, uint32_t vocab) {
  const double distance = distance_of_most_rows(logits, others, vocab);
  if (!(distance < 0.02)) return false;
  size_t num_equal = 0;
  for (auto row = logits.begin(), other = others.begin(); row != logits.end(); row += vocab, other += vocab)
    num_equal += std::max_element(row, row + vocab) - row == std::max_element(other, other + vocab) - other;
  std::printf("  most rows are within %.2e, %zu of %zu have the same best token\n", distance, num_equal,
              logits.size() / vocab);
  return 10 * num_equal >= 9 * (logits.size() / vocab);
}

/// The executor on the test's device, for one plan.
class StepRunner {
 public:
  StepRunner(const DeviceModel& model, const Plan& given, uint32_t num_seqs = 1, uint64_t seed = 0,
             uint32_t timeout_ms = 10'000)
      : StepRunner(model, given, num_seqs, open_test_device(seed), timeout_ms) {}
  StepRunner(const DeviceModel& model, const Plan& given, uint32_t num_seqs, std::shared_ptr<cuda::StepDevice> device,
             uint32_t timeout_ms)
      : plan(given), cache(model.config, {kMaxContext, given.options().max_tokens, num_seqs}) {
    executor = cuda::make_cuda_executor(std::move(device), model.pack(), model.config, {&plan},
                                        {.timeout_ms = timeout_ms});
    for (uint32_t s = 0; s < num_seqs; ++s) cache.reserve(s, kMaxContext);
  }

  /// One step; false: it did not end well, see `error`.
  bool run(const StepInput& input) {
    output.sampled = sampled_;
    try {
      executor->run(plan, cache, input, output);
    } catch (const Error& failed) {
      error = failed.what();
      code = failed.code();
    }
    return error.empty();
  }

  const float* logits(uint32_t row) const {
    return output.logits + uint64_t{row} * output.logits_stride;
  }
  const SampleResult& sampled(uint32_t row) const { return sampled_[row]; }

  static constexpr uint32_t kMaxContext = 128;
  const Plan plan;
  KvCache cache;
  std::unique_ptr<Executor> executor;
  StepOutput output;
  std::string error;
  ErrorCode code{};

 private:
  SampleResult sampled_[cuda::kMaxBlockTokens];
};

}  // namespace fixture
