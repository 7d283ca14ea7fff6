// Engines on the test's device and on the CPU, with the weights of one small model.
#pragma once

#include "device_step_fixture.h"
#include "engine/cuda_engine.h"
#include "engine/engine_impl.h"

#include <mimo_rt/session.h>

namespace fixture {

using Tokens = std::vector<int32_t>;

// The emulator looks after every byte of keys and values.
inline constexpr uint32_t kSmallContext = 64;
inline const SessionOptions kSmall{.max_context = kSmallContext};

inline const DeviceModel& model() {
  static const DeviceModel model(device_config());
  return model;
}

/// Decoding plainly, unless there is a draft directory.
inline EngineOptions options_for(uint32_t num_threads) {
  EngineOptions options;
  options.device = "cuda";
  options.draft = "none";
  options.num_threads = num_threads;
  return options;
}

inline std::shared_ptr<Engine> open_engine(const std::shared_ptr<cuda::StepDevice>& device,
                                    const EngineOptions& options = options_for(2),
                                    const std::filesystem::path& draft_dir = {}) {
  return open_cuda_engine(*model().checkpoint, model().config, options, draft_dir, device);
}
inline std::shared_ptr<Engine> open_engine() { return open_engine(open_test_device()); }

inline GenerateOptions greedy(uint32_t max_tokens) {
  GenerateOptions options;
  options.sampling.temperature = 0.0f;
  options.max_tokens = max_tokens;
  options.ignore_eos = true;
  return options;
}

}  // namespace fixture
