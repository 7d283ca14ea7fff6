// A small model with all of MiMo's features, from one checkpoint for the CPU and for the CUDA
// kernels, and an engine that runs steps on the emulated GPU.
#pragma once

#define MIMO_RT_HOST_EMULATION
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "checkpoint_fixture.h"
#include "cuda/device/persistent/roles.cuh"
#include "cuda/device_plan.h"
#include "cuda/persistent.h"
#include "emulation/schedule.h"
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
  if (ends("mlp.gate.weight")) return fill([&] { return 2 * per_input * normal(random); });
  if (ends("bias")) return fill_bf16(0.0f, 0.5f);
  if (ends("norm.weight") || ends("layernorm.weight")) return fill_bf16(1.0f, 0.2f);
  if (ends("embed_tokens.weight")) return fill_bf16(0.0f, 1.0f);
  if (ends("lm_head.weight")) return fill_bf16(0.0f, 2 * per_input);
  if (ends("o_proj.weight")) return fill_bf16(0.0f, 0.5f * per_input);
  // FP8 and MXFP4 codes stay as they are: any are valid.
}

struct DeviceModel {
  ModelConfig config;
  writer::TempDir dir;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<CudaWeights> device;
  std::unique_ptr<Weights> host;

  explicit DeviceModel(const ModelConfig& model_config) : config(model_config) {
    std::map<std::string, DType> dtypes;
    for (const ExpectedTensor& tensor : expected_tensors(config))
      if (tensor.name.ends_with("mlp.gate.weight")) dtypes[tensor.name] = DType::f32;
    write_checkpoint(dir, config, dtypes, [&](const std::string& name, std::string& bytes) {
      fill_sensible(config, name, bytes);
    });
    checkpoint = std::make_unique<Checkpoint>(Checkpoint::open(dir.path()));
    device = std::make_unique<CudaWeights>(CudaWeights::load(*checkpoint, config, {{}, 1, {}}));
    host = std::make_unique<Weights>(
        Weights::load(*checkpoint, config, {.num_threads = 1, .progress = {}}));
  }
};

/// Memory as a device allocator gives it; what nobody has written is NaN.
struct DeviceBlock {
  static constexpr size_t kAlignment = 256;
  std::unique_ptr<uint8_t, decltype(&std::free)> data{nullptr, &std::free};
  size_t size = 0;

  explicit DeviceBlock(size_t num_bytes)
      : data(static_cast<uint8_t*>(std::aligned_alloc(
                 kAlignment, (num_bytes + kAlignment) / kAlignment * kAlignment)),
             &std::free),
        size(num_bytes) {
    std::memset(data.get(), 0xff, num_bytes);
  }
};

/// Runs steps of a plan with one launch of the persistent kernel each.
class EmulatedEngine {
 public:
  EmulatedEngine(const DeviceModel& model, const Plan& given, uint32_t num_seqs = 1,
                 uint32_t max_context = 128)
      : plan(given),
        kv(model.config.layers, {max_context, given.options().max_tokens, num_seqs}),
        device_plan(plan, model.config, *model.device, kv),
        weights_(model.device->block().size()),
        kv_(kv.bytes()),
        step_(device_plan.layout().bytes),
        device_{weights_.data.get(), kv_.data.get(), step_.data.get()} {
    const std::span<const uint8_t> block = model.device->block();
    std::memcpy(weights_.data.get(), block.data(), block.size());
    const std::vector<uint8_t> image = device_plan.image(device_);
    std::memcpy(step_.data.get(), image.data(), image.size());
  }

  /// One step; false: it did not end well, see `error` and `report`.
  bool run(const StepInput& input, const std::vector<cuda::SamplingRules>& rules = {}) {
    const cuda::StepLayout& layout = device_plan.layout();
    write(layout.token_ids, input.token_ids, input.num_tokens);
    write(layout.seq_idx, input.seq_idx, input.num_tokens);
    write(layout.positions, input.positions, input.num_tokens);
    write(layout.logit_rows, input.logit_rows, input.num_logit_rows);
    const cuda::StepTables tables =
        device_plan.tables(device_, input.num_tokens, input.num_logit_rows);
    write(layout.tables, &tables, 1);
    next_positions_.assign(input.num_logit_rows, 0);
    for (uint32_t r = 0; r < input.num_logit_rows; ++r) {
      next_positions_[r] = input.positions[input.logit_rows[r]] + 1;
      cuda::SampleParams row = device_plan.sample_row(device_, r);
      row.rules = rules.empty() ? cuda::SamplingRules{.temperature = 0.0f} : rules[r];
      row.position = &next_positions_[r];
      write(layout.sample_rows + r * sizeof row, &row, 1);
    }
    cuda::PersistentParams params = device_plan.params(device_, epoch_++);
    params.watchdog.report = &report;
    params.watchdog.deadline_ns = deadline_ns;
    emulation::LaunchOptions options;
    options.num_blocks = plan.num_workers();
    options.num_threads = cuda::kPersistentThreads;
    options.shared_bytes = sizeof(cuda::PersistentShared);
    options.seed = seed;
    options.handed_over = {{kv_.data.get(), kv_.size}};
    error = emulation::launch(options, cuda::persistent_kernel, params).error;
    return error.empty() && report.is_written == 0;
  }

  const float* logits(uint32_t row) const {
    return at<const float>(device_plan.layout().logits) + uint64_t{row} * plan.buffers()[kLogits].cols;
  }
  int32_t sampled(uint32_t row) const { return at<const int32_t>(device_plan.layout().sampled)[row]; }
  uint32_t stop() const { return *at<const uint32_t>(device_plan.layout().stop); }

  const Plan plan;
  const cuda::KvLayout kv;
  const cuda::DevicePlan device_plan;
  uint64_t seed = 0;
  uint64_t deadline_ns = cuda::kMaxDeadlineNs;
  std::string error;
  cuda::HangReport report{};

 private:
  template <typename T>
  T* at(uint64_t offset) const {
    return reinterpret_cast<T*>(step_.data.get() + offset);
  }
  template <typename T>
  void write(uint64_t offset, const T* values, size_t count) {
    if (count != 0) std::memcpy(step_.data.get() + offset, values, count * sizeof(T));
  }

  DeviceBlock weights_, kv_, step_;
  const cuda::DeviceAddresses device_;
  std::vector<uint32_t> next_positions_;
  uint32_t epoch_ = 0;
};

}  // namespace fixture
