#define MIMO_RT_HOST_EMULATION
#include "cuda/device/persistent/roles.cuh"

#include "emulated_step_device.h"

#include <algorithm>

namespace fixture {

/// The memory of all caches that rows have keys and values in.
std::vector<std::span<uint8_t>> EmulatedStepDevice::caches_of(const cuda::StepTables& step) const {
  std::map<void*, uint64_t> found;
  for (const cuda::KvSequence& sequence : step.kv) {
    if (!sequence.layers) continue;
    const auto cache = std::prev(blocks().upper_bound(const_cast<cuda::KvView*>(sequence.layers)));  // it describes itself
    found.insert(*cache);
  }
  std::vector<std::span<uint8_t>> caches;
  for (const auto& [memory, size] : found) caches.emplace_back(static_cast<uint8_t*>(memory), size);
  return caches;
}

void EmulatedStepDevice::begin(const cuda::PersistentParams& given, uint32_t num_blocks) {
  cuda::PersistentParams params = given;
  if (params.watchdog.deadline_ns == kPatienceMs * uint64_t{1'000'000}) params.watchdog.deadline_ns = 900'000;
  emulation::LaunchOptions options;
  options.num_blocks = num_blocks;
  options.num_threads = cuda::kPersistentThreads;
  options.shared_bytes = sizeof(cuda::PersistentShared);
  options.seed = seed;
  options.handed_over = caches_of(*params.step);
  for (const auto& [memory, size] : pinned_)
    options.host_memory.emplace_back(static_cast<uint8_t*>(memory), size);
  options.cuts_sums = cuts_sums;
  options.skip = fault;
  options.skip_ordinal = fault_ordinal;
  if (overwrites_routes)
    options.skip_wait = [](uint32_t warp_idx, const uint64_t* mbarrier) {
      auto& shared = *reinterpret_cast<cuda::PersistentShared*>(ptx::dynamic_shared_memory());
      const auto is_it = [&](const cuda::TaskSlot& slot) { return mbarrier == &slot.is_free; };
      return warp_idx == cuda::kComputeWarps + 2 && std::ranges::any_of(shared.slots.slots, is_it);
    };
  running_ = std::make_unique<emulation::Launch>(options, [params] { cuda::persistent_kernel(params); });
}

}  // namespace fixture
