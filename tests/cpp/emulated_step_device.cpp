#define MIMO_RT_HOST_EMULATION
#include "cuda/device/persistent/roles.cuh"

#include "emulated_step_device.h"

namespace fixture {

void EmulatedStepDevice::begin(const cuda::PersistentParams& given, uint32_t num_blocks) {
  cuda::PersistentParams params = given;
  if (params.watchdog.deadline_ns == kPatienceMs * uint64_t{1'000'000}) params.watchdog.deadline_ns = 900'000;
  emulation::LaunchOptions options;
  options.num_blocks = num_blocks;
  options.num_threads = cuda::kPersistentThreads;
  options.shared_bytes = sizeof(cuda::PersistentShared);
  options.seed = seed;
  auto* kv = const_cast<uint8_t*>(params.step->places.kv->blocks);
  options.handed_over = {{kv, blocks().at(kv)}};  // of layer 0: where it begins
  for (const auto& [memory, size] : pinned_)
    options.host_memory.emplace_back(static_cast<uint8_t*>(memory), size);
  options.skip = fault;
  options.skip_ordinal = fault_ordinal;
  running_ = std::make_unique<emulation::Launch>(options, [params] { cuda::persistent_kernel(params); });
}

}  // namespace fixture
