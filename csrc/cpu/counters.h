// Signals and waits between tasks. Counters only grow: epoch e of a plan waits for e * total +
// value.
//
// Contract. `signal` is a release addition: all that the worker wrote before is visible to whoever
// has seen the new value in `wait` or `has`, which are acquire loads (each addition continues the
// release sequences of those before it, so one load synchronises with all signallers). A wait
// during which no counter moves for the deadline stops the step: every wait that is not met returns
// false and leaves a HangReport. No lock, no allocation; no system call unless a wait is long.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace mimo_rt::cpu {

/// Tells the core that this is a spin loop.
inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Monotonic counters, each on a cache line of its own.
class Counters {
 public:
  explicit Counters(size_t num_counters);

  void signal(uint32_t counter) { cells_[counter].value.fetch_add(1, std::memory_order_release); }
  uint64_t load(uint32_t counter) const {
    return cells_[counter].value.load(std::memory_order_acquire);
  }
  /// Of all counters, roughly: it may miss those that arrive meanwhile.
  uint64_t num_signals() const;

 private:
  struct alignas(64) Cell {
    std::atomic<uint64_t> value{0};
  };
  size_t num_counters_;
  std::unique_ptr<Cell[]> cells_;
};

/// Who waits for what, and what may be fetched meanwhile.
struct WaitSite {
  uint32_t worker_idx, task_idx;
  uint32_t counter;
  uint64_t expected;
  const uint8_t* prefetch_begin;  ///< weights of the waiting task, or nullptr
  const uint8_t* prefetch_end;
};

/// What a worker was waiting for when it left a step that had stopped.
struct HangReport {
  uint32_t worker_idx, task_idx;
  uint32_t counter;
  uint64_t expected, seen;  ///< expected 0: the worker was not waiting
};

/// Deadlines and the stop flag of one executor.
class WaitMonitor {
 public:
  /// @param yields_always  more workers than cores: give way early in every wait
  WaitMonitor(uint32_t num_workers, uint32_t timeout_ms, bool yields_always);

  /// True when the counter has reached site.expected; false when the step is to be left.
  bool wait(const Counters& counters, const WaitSite& site) {
    return counters.load(site.counter) >= site.expected || wait_slowly(counters, site);
  }
  bool has_stopped() const { return has_stopped_.load(std::memory_order_acquire); }
  /// One per worker; valid once has_stopped() and all workers have left the step.
  const std::vector<HangReport>& reports() const { return reports_; }
  uint32_t first_worker() const { return first_worker_.load(); }  ///< whose deadline passed first

 private:
  bool wait_slowly(const Counters& counters, const WaitSite& site);

  int64_t timeout_ns_;
  bool yields_always_;
  bool leave(const WaitSite& site, uint64_t seen);

  static constexpr uint32_t kNobody = 0xffffffffu;
  std::atomic<uint32_t> first_worker_{kNobody};
  std::atomic<bool> has_stopped_{false};
  std::vector<HangReport> reports_;  // each worker writes its own
};

}  // namespace mimo_rt::cpu
