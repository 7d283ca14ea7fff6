#include "cpu/counters.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <climits>
#include <utility>

namespace mimo_rt::cpu {
namespace {

constexpr uint32_t kPollsPerClockRead = 64;
// A sleeper looks after the stop flag and the deadline at least this often.
constexpr int64_t kMaxSleepNs = 10'000'000;
// A stopped process or a debugger must not look like a hang: no pause between two polls counts for
// more than this, nor for more than the part of the deadline after which signals are counted first.
constexpr int64_t kMaxPauseNs = 100'000'000;
constexpr int64_t kCountAfter = 16;  ///< the deadline's part; common waits never pay for counting
constexpr uint64_t kUnknown = ~uint64_t{0};
constexpr uint32_t kLinesPerPoll = 2;
constexpr uint32_t kCacheLine = 64;

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// The half of a counter that changes with every signal: a futex has 32 bits.
const uint32_t* futex_word(const std::atomic<uint64_t>& value) {
  constexpr size_t kLow = std::endian::native == std::endian::little ? 0 : 1;
  return reinterpret_cast<const uint32_t*>(&value) + kLow;
}

}  // namespace

Counters::Counters(size_t num_counters)
    : num_counters_(num_counters), cells_(std::make_unique<Cell[]>(num_counters)) {}

void Counters::sleep(uint32_t counter, uint64_t expected, int64_t max_ns) const {
  Cell& cell = cells_[counter];
  cell.num_sleepers.fetch_add(1, std::memory_order_seq_cst);
  const uint64_t seen = cell.value.load(std::memory_order_seq_cst);
  if (seen < expected) {
    const timespec limit{max_ns / 1'000'000'000, max_ns % 1'000'000'000};
    syscall(SYS_futex, futex_word(cell.value), FUTEX_WAIT_PRIVATE, static_cast<uint32_t>(seen),
            &limit, nullptr, 0);
  }
  cell.num_sleepers.fetch_sub(1, std::memory_order_relaxed);
}

void Counters::wake_sleepers(Cell& cell) {
  syscall(SYS_futex, futex_word(cell.value), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

uint64_t Counters::num_signals() const {
  uint64_t sum = 0;
  for (size_t i = 0; i < num_counters_; ++i) sum += cells_[i].value.load(std::memory_order_relaxed);
  return sum;
}

WaitMonitor::WaitMonitor(uint32_t num_workers, uint32_t timeout_ms, int64_t spin_ns)
    : timeout_ns_(int64_t{timeout_ms} * 1'000'000),
      spin_ns_(spin_ns),
      reports_(num_workers) {}

bool WaitMonitor::leave(const WaitSite& site, uint64_t seen) {
  reports_[site.worker_idx] = {site.worker_idx, site.task_idx, site.counter, site.expected, seen};
  return false;
}

bool WaitMonitor::wait_slowly(const Counters& counters, const WaitSite& site) {
  int64_t last_ns = now_ns(), waited_ns = 0;
  const int64_t count_after_ns = timeout_ns_ / kCountAfter;
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
    waited_ns += std::min({now - last_ns, kMaxPauseNs, count_after_ns});
    last_ns = now;
    if (num_signals == kUnknown && waited_ns >= count_after_ns)
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
    if (waited_ns >= spin_ns_)
      counters.sleep(site.counter, site.expected, std::min(kMaxSleepNs, count_after_ns));
  }
}

}  // namespace mimo_rt::cpu
