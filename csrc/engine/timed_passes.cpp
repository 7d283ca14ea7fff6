#include "engine/timed_passes.h"

#include "core/checks.h"
#include "core/pin.h"

#include <algorithm>
#include <system_error>
#include <utility>

namespace mimo_rt {

TimedPasses::TimedPasses(const char* where, const PassOptions& options,
                         std::function<uint64_t(uint32_t)> work)
    : seconds_(options.seconds), work_(std::move(work)), barrier_(options.num_threads + 1),
      parts_(options.num_threads) {
  const uint32_t num_threads = options.num_threads;
  std::vector<int> cores;
  if (options.pin_threads) cores = cores_to_pin(num_threads);
  threads_.reserve(num_threads);
  try {
    for (uint32_t i = 0; i < num_threads; ++i) {
      const int core = cores.empty() ? -1 : cores[i];
      threads_.emplace_back([this, i, core] { run_thread(i, core); });
    }
  } catch (const std::system_error& error) {
    give_up();
    fail(ErrorCode::out_of_memory, where, "cannot start ", num_threads, " threads: ", error.what());
  } catch (...) {
    give_up();
    throw;
  }
  start();
}

TimedPasses::~TimedPasses() {
  if (!threads_.empty()) stop();
}

TimedPasses::Result TimedPasses::run() {
  barrier_.arrive_and_wait();
  barrier_.arrive_and_wait();
  const auto begin = std::ranges::min(parts_, {}, &Part::begin).begin;
  const auto end = std::ranges::max(parts_, {}, &Part::end).end;
  Result result{std::chrono::duration<double>(end - begin).count(), 0};
  for (const Part& part : parts_) result.sum += part.result;
  return result;
}

TimedPasses::Result TimedPasses::fastest() {
  constexpr int kMinPasses = 3;
  const auto begin = Clock::now();
  Result best = run();
  for (int pass = 1; pass < kMinPasses ||
                     std::chrono::duration<double>(Clock::now() - begin).count() < seconds_;
       ++pass) {
    const Result result = run();
    if (result.seconds < best.seconds) best = result;
  }
  return best;
}

void TimedPasses::run_thread(uint32_t thread, int core) {
  if (core >= 0) pin_this_thread(core);
  started_.wait(false);
  while (true) {
    barrier_.arrive_and_wait();
    if (stopped_) return;
    Part& part = parts_[thread];
    part.begin = Clock::now();
    part.result = work_(thread);
    part.end = Clock::now();
    barrier_.arrive_and_wait();
  }
}

void TimedPasses::start() {
  started_ = true;
  started_.notify_all();
}

/// The barrier counts threads that never came: lets them arrive as dropped.
void TimedPasses::give_up() {
  for (size_t i = threads_.size(); i < parts_.size(); ++i) barrier_.arrive_and_drop();
  stop();
}

void TimedPasses::stop() {
  stopped_ = true;
  start();
  barrier_.arrive_and_wait();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace mimo_rt
