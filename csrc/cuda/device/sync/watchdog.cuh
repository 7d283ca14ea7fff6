// Waiting for another block: with a deadline, a report, and a way out for everybody.
//
// Contract. `wait_until` returns true when the edge is met. Else it returns false and the caller
// leaves the kernel without signalling anything: the first thread whose deadline passes sets the
// stop word (one compare-and-exchange, so there is one first) and writes the report; every other
// wait sees the stop word soon after and returns false too. No wait for another block traps, so the
// context stays usable; those of a block's own roles do (mbarrier.cuh). The stop word is only looked
// at by waits that are not met at once: a task whose inputs are there runs, which is harmless.
#pragma once

#include "cuda/device/sync/wait_clock.cuh"
#include "cuda/hang_report.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kPollsPerClockRead = 32;

/// This thread gives up. Only the first to do so is heard.
__device__ inline void report_hang(const Watchdog& watchdog, const WaitSite& site,
                                   uint32_t expected, uint32_t seen) {
  if (ptx::compare_exchange_gpu(watchdog.stop, kRunning, kHung) != kRunning) return;
  HangReport& report = *watchdog.report;
  report.site = site;
  report.expected = expected;
  report.seen = seen;
  ptx::store_release_system(&report.is_written, 1);
}

/// Polls `poll()` until `is_met(what it gave)`; each thread for itself, of a warp one (counters) or
/// up to all (tagged words). Nothing is counted and no clock is read when the first poll is met.
template <typename Poll, typename IsMet>
__device__ __forceinline__ bool wait_until(const Watchdog& watchdog, const WaitSite& site,
                                           uint32_t expected, Poll poll, IsMet is_met) {
  uint32_t seen = poll();
  if (is_met(seen)) return true;
  WaitClock clock;
  for (uint32_t polls = 1;; ++polls) {
    ptx::sleep_ns(20);
    seen = poll();
    if (is_met(seen)) return true;
    if (polls % kPollsPerClockRead != 0) continue;
    if (ptx::load_acquire_gpu(watchdog.stop) != kRunning) return false;
    if (!clock.has_passed(watchdog.deadline_ns)) continue;
    report_hang(watchdog, site, expected, seen);
    return false;
  }
}

}  // namespace mimo_rt::cuda
