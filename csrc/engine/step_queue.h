// A mutex that serves its callers in the order of their arrival: with std::mutex, a session that
// releases and takes the engine again at once can starve all others.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace mimo_rt {

/// Meets BasicLockable: use with std::lock_guard.
class StepQueue {
 public:
  void lock() {
    std::unique_lock guard(mutex_);
    const uint64_t ticket = next_ticket_++;
    changed_.wait(guard, [&] { return serving_ == ticket; });
  }
  void unlock() {
    bool has_waiters;
    {
      const std::lock_guard guard(mutex_);
      has_waiters = ++serving_ != next_ticket_;
    }
    if (has_waiters) changed_.notify_all();
  }
  /// Callers that wait now.
  uint64_t num_waiting() {
    const std::lock_guard guard(mutex_);
    return next_ticket_ == serving_ ? 0 : next_ticket_ - serving_ - 1;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t next_ticket_ = 0, serving_ = 0;
};

}  // namespace mimo_rt
