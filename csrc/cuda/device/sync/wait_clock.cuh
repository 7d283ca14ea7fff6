// How long a wait has taken. A debugger that holds the GPU must not look like a hang: no pause
// between two looks at the clock counts for more than kMaxPauseNs.
#pragma once

#include "cuda/device/ptx/ptx.cuh"

namespace mimo_rt::cuda {

inline constexpr uint64_t kMaxPauseNs = 10'000'000;

/// Counts in ticks of about the clock's own steps, so that two registers hold it. Differences are
/// modulo 2^32 ticks, 73 minutes: a pause of many times that may count for less than the limit.
class WaitClock {
 public:
  __device__ __forceinline__ WaitClock() : last_(ticks()) {}

  /// Looks at the clock. @return whether the wait has taken `deadline_ns`, at most 73 minutes
  __device__ __forceinline__ bool has_passed(uint64_t deadline_ns) {
    constexpr uint32_t kMaxPause = kMaxPauseNs / kTickNs;
    const uint32_t now = ticks(), pause = now - last_;
    waited_ += pause < kMaxPause ? pause : kMaxPause;
    last_ = now;
    return waited_ >= static_cast<uint32_t>(deadline_ns / kTickNs);
  }

 private:
  static constexpr uint64_t kTickNs = 1024;
  __device__ __forceinline__ static uint32_t ticks() {
    return static_cast<uint32_t>(ptx::global_timer_ns() / kTickNs);
  }
  uint32_t last_, waited_ = 0;
};

}  // namespace mimo_rt::cuda
