// Delays for tests: with a seed, waiters and publishers are late by pseudo-random times, so that
// blocks meet in orders that a quiet GPU does not show. No result may depend on them.
#pragma once

#include "cuda/device/ptx/ptx.cuh"

namespace mimo_rt::cuda {

inline constexpr uint32_t kMaxDelayNs = 4096;  ///< some tasks' time

enum class DelayedRole : uint32_t { waiter, publisher };

/// Holds this thread for 0 .. kMaxDelayNs: every second time not at all, else what seed, block,
/// role and the running number of the task say. Seed 0: never.
__device__ __forceinline__ void delay_role(uint32_t seed, DelayedRole role, uint32_t use) {
  if (seed == 0) return;
  uint32_t hash = seed ^ (2 * blockIdx.x + static_cast<uint32_t>(role)) * 0x9e3779b9u ^ use * 0x85ebca6bu;
  hash = (hash ^ hash >> 16) * 0x85ebca6bu;  // the finalizer of MurmurHash3
  hash = (hash ^ hash >> 13) * 0xc2b2ae35u;
  hash ^= hash >> 16;
  if (hash & 1) ptx::sleep_ns(hash / 2 % kMaxDelayNs);
}

}  // namespace mimo_rt::cuda
