#include "cpu/counters.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace mimo_rt::cpu {
namespace {

constexpr uint32_t kPollsPerClockRead = 64;
constexpr int64_t kYieldAfterNs = 50'000;
// A stopped process or a debugger must not look like a hang: no pause between two polls counts for
// more than this.
constexpr int64_t kMaxPauseNs = 100'000'000;
// Signals are counted first after this part of the deadline: common waits never pay for it.
constexpr int64_t kCountAfter = 16;
constexpr uint64_t kUnknown = ~uint64_t{0};
constexpr uint32_t kLinesPerPoll = 2;
constexpr uint32_t kCacheLine = 64;

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

Counters::Counters(size_t num_counters)
    : num_counters_(num_counters), cells_(std::make_unique<Cell[]>(num_counters)) {}

uint64_t Counters::num_signals() const {
  uint64_t sum = 0;
  for (size_t i = 0; i < num_counters_; ++i) sum += cells_[i].value.load(std::memory_order_relaxed);
  return sum;
}

WaitMonitor::WaitMonitor(uint32_t num_workers, uint32_t timeout_ms, bool yields_always)
    : timeout_ns_(int64_t{timeout_ms} * 1'000'000),
      yields_always_(yields_always),
      reports_(num_workers) {}

bool WaitMonitor::leave(const WaitSite& site, uint64_t seen) {
  reports_[site.worker_idx] = {site.worker_idx, site.task_idx, site.counter, site.expected, seen};
  return false;
}

bool WaitMonitor::wait_slowly(const Counters& counters, const WaitSite& site) {
  int64_t last_ns = now_ns(), waited_ns = 0;
  uint64_t num_signals = kUnknown;
  const uint8_t* line = site.prefetch_begin;
  for (uint32_t polls = 1;; ++polls) {
    cpu_relax();
    const uint64_t seen = counters.load(site.counter);
    if (seen >= site.expected) return true;
    for (uint32_t i = 0; i < kLinesPerPoll && line < site.prefetch_end; ++i, line += kCacheLine)
      __builtin_prefetch(line, 0, 2);
    if (polls % kPollsPerClockRead) continue;

    if (has_stopped_.load(std::memory_order_relaxed)) return leave(site, seen);
    const int64_t now = now_ns();
    waited_ns += std::min(now - last_ns, kMaxPauseNs);
    last_ns = now;
    if (num_signals == kUnknown && waited_ns >= timeout_ns_ / kCountAfter)
      num_signals = counters.num_signals();
    if (waited_ns >= timeout_ns_) {
      const uint64_t before = std::exchange(num_signals, counters.num_signals());
      if (num_signals != before) {  // slow, as on an overloaded machine, but not stuck
        waited_ns = 0;
        continue;
      }
      uint32_t nobody = kNobody;
      first_worker_.compare_exchange_strong(nobody, site.worker_idx);
      has_stopped_.store(true, std::memory_order_release);
      return leave(site, seen);
    }
    if (yields_always_ || waited_ns >= kYieldAfterNs) sched_yield();
  }
}

}  // namespace mimo_rt::cpu
