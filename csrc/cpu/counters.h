// Signals and waits between tasks. Counters only grow: epoch e of a plan waits for e * total +
// value.
//
// Contract. `signal` is a release addition: all that the worker wrote before is visible to whoever
// has seen the new value in `wait` or `load`, which are acquire loads (each addition continues the
// release sequences of those before it, so one load synchronises with all signallers). A wait
// during which no counter moves for the deadline stops the step: every wait that is not met returns
// false and leaves a HangReport.
//
// Whom a waiter waits for may have lost its core to another process. So a waiter spins for a while,
// then sleeps until the counter moves: meanwhile the other process has this core, and whoever has
// slept gets a core at once when it is woken. Waiters that spin on, or yield, which gives a core
// away for a whole time slice, make the workers lose their cores in turns. While that goes on, a
// smaller team is better (cpu/team.h). No lock, no allocation; no system call unless a wait is long.
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

  // Sequentially consistent, as in `sleep`: either the signaller sees the sleeper, or the sleeper
  // sees the new value.
  void signal(uint32_t counter) {
    Cell& cell = cells_[counter];
    cell.value.fetch_add(1, std::memory_order_seq_cst);
    if (cell.num_sleepers.load(std::memory_order_seq_cst)) wake_sleepers(cell);
  }
  uint64_t load(uint32_t counter) const {
    return cells_[counter].value.load(std::memory_order_acquire);
  }
  /// Sleeps until somebody signals the counter or `max_ns` have passed; not at all when it has
  /// reached `expected`. May return early.
  void sleep(uint32_t counter, uint64_t expected, int64_t max_ns) const;
  /// Of all counters, roughly: it may miss those that arrive meanwhile.
  uint64_t num_signals() const;

 private:
  struct alignas(64) Cell {
    std::atomic<uint64_t> value{0};
    std::atomic<uint32_t> num_sleepers{0};
  };
  static void wake_sleepers(Cell& cell);

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
  /// A few times what it costs to fall asleep and to be woken (measured in a virtual machine: 36 us
  /// until the sleeper runs, 13 to 52 us in the signaller's call); time slices are longer.
  static constexpr int64_t kSpinNs = 200'000;

  /// @param spin_ns  how long a wait spins before it sleeps; 0 when workers outnumber cores
  WaitMonitor(uint32_t num_workers, uint32_t timeout_ms, int64_t spin_ns = kSpinNs);

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
  bool leave(const WaitSite& site, uint64_t seen);

  int64_t timeout_ns_;
  int64_t spin_ns_;

  static constexpr uint32_t kNobody = 0xffffffffu;
  std::atomic<uint32_t> first_worker_{kNobody};
  std::atomic<bool> has_stopped_{false};
  std::vector<HangReport> reports_;  // each worker writes its own
};

}  // namespace mimo_rt::cpu
