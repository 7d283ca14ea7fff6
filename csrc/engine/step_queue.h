// A mutex that serves its callers in the order of their arrival: with std::mutex, a session that
// releases and takes the engine again at once can starve all others. Who holds it may do the work
// of some that wait; they leave the queue without a turn of their own.
#pragma once

#include "core/owner_process.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

namespace mimo_rt {

/// Meets BasicLockable: use with std::lock_guard. In a fork, where the turn or the mutex may be taken for good, waiting is
/// an error.
class StepQueue {
 public:
  /// A caller, on its own stack while it waits. Each has a signal of its own: nobody else wakes up.
  struct Waiter {
    virtual ~Waiter() = default;
    enum class State : uint8_t { waiting, has_turn, served } state = State::waiting;
    std::condition_variable changed;
  };

  /// @throws Error{unavailable} in a fork
  void lock() {
    Waiter waiter;
    wait(waiter);
  }
  /// True: the turn is the caller's, who calls unlock(). False: somebody has served it.
  /// @throws Error{unavailable} in a fork
  bool wait(Waiter& waiter) {
    owner_.check("Engine");
    std::unique_lock guard(mutex_);
    if (!is_taken_) {
      is_taken_ = true;
      return true;
    }
    waiting_.push_back(&waiter);
    if (waiting_.size() == num_awaited_) arrived_.notify_one();
    waiter.changed.wait(guard, [&] { return waiter.state != Waiter::State::waiting; });
    return waiter.state == Waiter::State::has_turn;
  }
  void unlock() {
    const std::lock_guard guard(mutex_);
    is_taken_ = !waiting_.empty();
    if (!is_taken_) return;
    Waiter& next = *waiting_.front();
    waiting_.pop_front();
    wake(next, Waiter::State::has_turn);
  }
  /// By whoever has the turn: sleeps until `count` callers wait, but no longer than `patience`.
  void await_waiting(size_t count, std::chrono::nanoseconds patience) {
    std::unique_lock guard(mutex_);
    num_awaited_ = count;
    arrived_.wait_for(guard, patience, [&] { return waiting_.size() >= count; });
    num_awaited_ = 0;
  }
  /// By whoever has the turn: those waiters that `chooses` wants, in the order of arrival, leave the queue. They sleep
  /// until serve().
  template <typename Chooses>
  std::vector<Waiter*> take(const Chooses& chooses) {
    const std::lock_guard guard(mutex_);
    std::vector<Waiter*> taken;
    taken.reserve(waiting_.size());  // nothing throws half-way
    std::erase_if(waiting_, [&](Waiter* waiter) {
      if (!chooses(*waiter)) return false;
      taken.push_back(waiter);
      return true;
    });
    return taken;
  }
  void serve(const std::vector<Waiter*>& taken) {
    const std::lock_guard guard(mutex_);
    for (Waiter* waiter : taken) wake(*waiter, Waiter::State::served);
  }
  /// Callers that wait now.
  uint64_t num_waiting() {
    const std::lock_guard guard(mutex_);
    return waiting_.size();
  }

 private:
  /// With the mutex: as soon as it is free the waiter may be gone.
  static void wake(Waiter& waiter, Waiter::State state) {
    waiter.state = state;
    waiter.changed.notify_one();
  }

  const OwnerProcess owner_;
  std::mutex mutex_;
  std::deque<Waiter*> waiting_;
  bool is_taken_ = false;
  size_t num_awaited_ = 0;  ///< by who has the turn; 0: not awaiting
  std::condition_variable arrived_;
};

}  // namespace mimo_rt
