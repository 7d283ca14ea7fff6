// Threads that do the same kind of work at the same time, pass by pass, and take the time.
#pragma once

#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace mimo_rt {

struct PassOptions {
  uint32_t num_threads = 1;
  bool pin_threads = true;  ///< see core/pin.h
  double seconds = 0.2;     ///< of `fastest`
};

/// The threads take the time themselves: the caller may wake late when they hold all cores,
/// and a pass would seem short.
class TimedPasses {
 public:
  /// `work(thread)`: one thread's part of a pass; what it returns is added up.
  /// @throws Error{out_of_memory} of `where` when threads cannot be started
  TimedPasses(const char* where, const PassOptions& options,
              std::function<uint64_t(uint32_t)> work);
  TimedPasses(const TimedPasses&) = delete;
  TimedPasses& operator=(const TimedPasses&) = delete;
  ~TimedPasses();

  struct Result {
    double seconds;  ///< from the first begin to the last end
    uint64_t sum;    ///< of what `work` returned
  };
  Result run();
  /// Of passes for about options.seconds, three at least.
  Result fastest();

 private:
  using Clock = std::chrono::steady_clock;
  struct Part {
    Clock::time_point begin, end;
    uint64_t result = 0;
  };

  void run_thread(uint32_t thread, int core);
  void start();
  void give_up();
  void stop();

  const double seconds_;
  const std::function<uint64_t(uint32_t)> work_;
  std::barrier<> barrier_;
  std::vector<Part> parts_;  // of each thread
  std::atomic<bool> started_ = false, stopped_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace mimo_rt
