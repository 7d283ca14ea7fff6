#include "cpu/worker_pool.h"

#include "core/checks.h"
#include "core/pin.h"
#include "cpu/counters.h"

#include <mimo_rt/device.h>

#include <sched.h>

#include <cfenv>
#include <chrono>
#include <numeric>
#include <system_error>

namespace mimo_rt::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// An idle worker gives way after this: the caller's thread may share its core and has the next
// job to prepare.
constexpr auto kYieldAfter = std::chrono::microseconds(20);
constexpr uint32_t kPollsPerClockRead = 32;

}  // namespace

WorkerPool::WorkerPool(const Options& options)
    : options_(options),
      pins_(options.num_workers),
      team_(options.num_workers),
      seats_(std::make_unique<Seat[]>(options.num_workers)) {
  MIMO_RT_CHECK(options.num_workers > 0, invalid_argument, "WorkerPool",
                "num_workers: expected > 0, got 0");
  is_oversubscribed_ = options.num_workers > num_usable_cores();
  if (options.pin_workers && !is_oversubscribed_) cores_ = cores_to_pin(options.num_workers);
  std::iota(team_.begin(), team_.end(), 0u);
  threads_.reserve(options.num_workers);
  try {
    for (uint32_t i = 0; i < options.num_workers; ++i)
      threads_.emplace_back([this, i] { worker_loop(i); });
  } catch (const std::system_error& error) {
    const size_t num_started = threads_.size();
    stop();
    fail(ErrorCode::unavailable, "WorkerPool", "threads: expected ", options.num_workers,
         ", the system gave ", num_started, " (", error.what(), "). Lower num_threads.");
  } catch (...) {
    stop();
    throw;
  }
}

WorkerPool::~WorkerPool() { stop(); }

void WorkerPool::stop() {
  is_stopping_.store(true, std::memory_order_relaxed);
  for (uint32_t worker = 0; worker < options_.num_workers; ++worker) call(seats_[worker]);
  for (std::thread& thread : threads_) owner_.join(thread);
}

void WorkerPool::notify_caller() {
  num_news_.fetch_add(1, std::memory_order_release);
  num_news_.notify_one();
}

void WorkerPool::run(Job& job, const std::function<void()>& on_news) {
  owner_.check("WorkerPool");
  job_ = &job;
  num_running_.store(team_size(), std::memory_order_relaxed);
  for (uint32_t member = 0; member < team_size(); ++member) {
    Seat& seat = seats_[team_[member]];
    seat.member_idx = member;
    call(seat);
  }
  for (bool is_running = true; is_running;) {
    const uint32_t seen = num_news_.load(std::memory_order_acquire);
    is_running = num_running_.load(std::memory_order_acquire) > 0;
    if (on_news) on_news();
    if (is_running) num_news_.wait(seen, std::memory_order_acquire);
  }
}

/// Its worker has something new: a job, or the end.
void WorkerPool::call(Seat& seat) {
  // Sequentially consistent, as in await_job: either the sleeper is seen, or it sees the number.
  seat.job_number.fetch_add(1, std::memory_order_seq_cst);
  if (seat.is_asleep.load(std::memory_order_seq_cst)) seat.job_number.notify_one();
}

std::span<const uint8_t> WorkerPool::take_shared() {
  shared_.clear();
  for (const uint32_t worker : team_) shared_.push_back(pins_[worker].take_shared());
  has_shared_.store(false, std::memory_order_relaxed);
  return shared_;
}

std::vector<int> WorkerPool::missing_cores() const {
  std::vector<int> cores;
  for (const CorePin& pin : pins_)
    if (pin.missing_core() >= 0) cores.push_back(pin.missing_core());
  return cores;
}

/// Returns the number of the job after `seen`: spins, then gives way, then sleeps.
uint32_t WorkerPool::await_job(Seat& seat, uint32_t seen) const {
  const auto begin = Clock::now();
  const auto park_after = std::chrono::microseconds(options_.park_after_us);
  for (uint32_t polls = 1;; ++polls) {
    const uint32_t number = seat.job_number.load(std::memory_order_acquire);
    if (number != seen) return number;
    cpu_relax();
    if (polls % kPollsPerClockRead) continue;
    const auto idle = Clock::now() - begin;
    if (idle >= park_after) break;
    if (is_oversubscribed_ || idle >= kYieldAfter) sched_yield();
  }
  seat.is_asleep.store(true, std::memory_order_seq_cst);
  seat.job_number.wait(seen, std::memory_order_seq_cst);
  seat.is_asleep.store(false, std::memory_order_relaxed);
  return seat.job_number.load(std::memory_order_acquire);
}

void WorkerPool::worker_loop(uint32_t worker_idx) {
  std::fesetenv(FE_DFL_ENV);  // a thread inherits the rounding of whoever opens the engine
  if (cores_.empty()) pins_[worker_idx].watch();
  else pins_[worker_idx].bind(cores_[worker_idx]);
  Seat& seat = seats_[worker_idx];
  for (uint32_t seen = 0;;) {
    seen = await_job(seat, seen);
    if (is_stopping_.load(std::memory_order_relaxed)) return;
    job_->work(seat.member_idx);
    // acq_rel: the caller, which sees 0, sees what every worker wrote.
    if (num_running_.fetch_sub(1, std::memory_order_acq_rel) == 1) notify_caller();
  }
}

}  // namespace mimo_rt::cpu
