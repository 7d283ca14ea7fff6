#include "weights/work_items.h"

#include "core/checks.h"

#include <mimo_rt/device.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace mimo_rt {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kProgressInterval{50};

class Crew {
 public:
  explicit Crew(const WorkItems& work) : work_(work), last_report_(Clock::now()) {}

  void run() {
    report();
    const uint32_t wanted = work_.num_threads ? work_.num_threads : num_usable_cores();
    const uint64_t useful = std::max<uint64_t>(work_.num_items, 1);
    const uint64_t num_helpers = std::min<uint64_t>(wanted, useful) - 1;
    {
      std::vector<std::jthread> helpers;
      start(helpers, num_helpers);
      take_items([this] { report_sometimes(); });
    }
    if (error_) std::rethrow_exception(error_);
    report();
  }

 private:
  // A system without room for another thread gets the work done by fewer.
  void start(std::vector<std::jthread>& helpers, uint64_t num_helpers) {
    helpers.reserve(num_helpers);
    try {
      while (helpers.size() < num_helpers)
        helpers.emplace_back([this] { take_items([] {}); });
    } catch (const std::system_error&) {
    }
  }

  template <typename AfterItem>
  void take_items(const AfterItem& after_item) {
    while (!stop_.load(std::memory_order_relaxed)) {
      const uint64_t item_idx = next_item_.fetch_add(1, std::memory_order_relaxed);
      if (item_idx >= work_.num_items) return;
      try {
        done_bytes_.fetch_add(work_.run(item_idx), std::memory_order_relaxed);
        after_item();
      } catch (...) {
        keep_error(item_idx);
      }
    }
  }

  // Items start in order and those under way are finished, so the first failing one is always seen.
  void keep_error(uint64_t item_idx) {
    const std::lock_guard lock(error_mutex_);
    if (!error_ || item_idx < error_item_) {
      error_ = std::current_exception();
      error_item_ = item_idx;
    }
    stop_.store(true, std::memory_order_relaxed);
  }

  void report() const {
    const bool goes_on =
        !work_.progress || work_.progress(done_bytes_.load(), work_.total_bytes);
    MIMO_RT_CHECK(goes_on, cancelled, work_.where, "stopped by the progress callback at ",
                  done_bytes_.load(), " of ", work_.total_bytes, " bytes");
  }

  void report_sometimes() {
    if (!work_.progress || Clock::now() - last_report_ < kProgressInterval) return;
    report();
    last_report_ = Clock::now();
  }

  const WorkItems& work_;
  std::atomic<uint64_t> next_item_ = 0;
  std::atomic<uint64_t> done_bytes_ = 0;
  std::atomic<bool> stop_ = false;
  std::mutex error_mutex_;
  std::exception_ptr error_;
  uint64_t error_item_ = 0;
  Clock::time_point last_report_;
};

}  // namespace

void run_work_items(const WorkItems& work) { Crew(work).run(); }

}  // namespace mimo_rt
