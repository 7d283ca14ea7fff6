// Resident threads that run one job at a time together, all of them or a part, and sleep between jobs.
//
// The caller of `run` is not a worker: it is the user's thread, whose affinity and priority are not
// ours to change, and it sleeps while the workers have all cores. Starting a job costs one store
// when the workers still spin.
#pragma once

#include "core/owner_process.h"
#include "cpu/core_pin.h"

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

namespace mimo_rt::cpu {

class WorkerPool {
 public:
  struct Options {
    uint32_t num_workers = 1;
    bool pin_workers = true;       ///< see core_pin.h and core/pin.h; never when oversubscribed
    uint32_t park_after_us = 200;  ///< an idle worker spins this long, then sleeps
  };
  class Job {
   public:
    /// @param member_idx  of the team: 0 .. its size - 1, each once
    virtual void work(uint32_t member_idx) noexcept = 0;

   protected:
    ~Job() = default;
  };

  /// @throws Error{unavailable} when the system refuses a thread; no thread is left behind.
  explicit WorkerPool(const Options& options);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  /// Between two jobs: who runs the next ones, workers in ascending order. At first all. The others
  /// are not woken and soon sleep.
  void set_team(std::span<const uint32_t> workers) { team_.assign(workers.begin(), workers.end()); }
  uint32_t team_size() const { return static_cast<uint32_t>(team_.size()); }

  /// Calls job.work(i) once on every member i of the team and returns when all have returned. What
  /// the caller wrote before is visible to the workers, what they wrote is visible to the caller.
  /// One caller at a time. The workers compute in the default floating-point environment.
  /// `on_news` is called on the caller's thread after notify_caller, several calls of which may
  /// become one, and at last when all workers have returned; it must not throw.
  /// @throws Error{unavailable} in a fork of the process that made the pool
  void run(Job& job, const std::function<void()>& on_news = {});
  /// By a worker inside a job: there is news for the caller. No system call unless the caller
  /// sleeps.
  void notify_caller();

  /// By a member inside a job, between two steps: looks whether its core is shared, and lets it go
  /// where it is.
  void review_pin(uint32_t member_idx) {
    if (pins_[team_[member_idx]].review()) has_shared_.store(true, std::memory_order_relaxed);
  }
  /// Whether any member's core was found shared since the last call of take_shared. By anybody.
  bool has_shared() const { return has_shared_.load(std::memory_order_relaxed); }
  /// Between two jobs: [team_size()] whether the member's core was found shared since the last call.
  std::span<const uint8_t> take_shared();

  /// Of all workers: cores that they should be bound to and the system does not give. For any thread.
  std::vector<int> missing_cores() const;

  uint32_t num_workers() const { return static_cast<uint32_t>(threads_.size()); }
  /// More workers than cores: whoever waits must let others run.
  bool is_oversubscribed() const { return is_oversubscribed_; }

 private:
  /// Where a worker finds its next job.
  struct alignas(64) Seat {
    std::atomic<uint32_t> job_number{0};
    std::atomic<bool> is_asleep{false};
    uint32_t member_idx = 0;
  };
  void worker_loop(uint32_t worker_idx);
  uint32_t await_job(Seat& seat, uint32_t seen) const;
  static void call(Seat& seat);
  void stop();

  Options options_;
  OwnerProcess owner_;  ///< of the threads
  bool is_oversubscribed_ = false;
  std::vector<int> cores_;      ///< of the workers; empty: none is bound
  std::vector<CorePin> pins_;
  std::vector<uint32_t> team_;  ///< workers
  std::vector<uint8_t> shared_;  ///< what take_shared has returned
  std::atomic<bool> has_shared_{false};
  std::unique_ptr<Seat[]> seats_;
  Job* job_ = nullptr;
  std::atomic<bool> is_stopping_{false};
  alignas(64) std::atomic<uint32_t> num_running_{0};
  std::atomic<uint32_t> num_news_{0};  ///< what the caller sleeps on; the end of a job is news too
  std::vector<std::thread> threads_;
};

}  // namespace mimo_rt::cpu
