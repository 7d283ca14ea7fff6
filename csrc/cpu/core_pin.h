// Watches whether a worker has its core to itself, and binds it to a core for as long as it has.
//
// Bound, a thread stays where its caches and its memory are. But when others use the core too, a
// bound thread waits for its turn though another core may be free, and all workers wait for it. So
// the time during which the thread was ready and did not run, which the kernel counts, is looked at
// now and then: after too much of it the thread is let go, for a second at first, longer each time.
//
// The system may refuse a core, or take it away later (a control group, taskset). Then the thread runs wherever it may,
// asks again after a while, and others can see that its core is missing.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <utility>

namespace mimo_rt::cpu {

class CorePin {
 public:
  CorePin() = default;
  ~CorePin();
  CorePin(const CorePin&) = delete;
  CorePin& operator=(const CorePin&) = delete;

  /// Watches the calling thread. From now on only that thread uses this object.
  void watch();
  /// Watches and binds it.
  void bind(int core);
  /// Between two steps: a clock read, and a system call every kReviewNs at most. True when it found the core shared.
  bool review();
  /// What `review` makes of the clock and of the time that the thread has been kept waiting so far.
  bool judge(int64_t now_ns, int64_t delayed_ns);
  bool is_bound() const { return is_bound_; }
  /// The core that the system has refused or taken away and not given back; -1: none. For any thread.
  int missing_core() const { return missing_core_.load(std::memory_order_relaxed); }
  /// Whether any review since the last call found the core shared. Also for another thread, while this one runs nothing.
  bool take_shared() { return std::exchange(was_shared_, false); }

  static constexpr int64_t kReviewNs = 20'000'000;
  static constexpr int64_t kSharedPart = 10;  ///< shared: kept waiting for more than 1 / 10 of a review
  static constexpr int64_t kFirstReleaseNs = 1'000'000'000, kMaxReleaseNs = 64 * kFirstReleaseNs;

 private:
  void bind_again(int64_t now_ns);
  void lose_core(int64_t now_ns);
  void release(int64_t now_ns);

  int core_ = -1;        ///< -1: never bound
  int delay_file_ = -1;  ///< the thread's /proc/…/schedstat; -1: nothing is known, never let go
  cpu_set_t allowed_;    ///< where the thread may run when it is not bound
  bool is_bound_ = false, was_shared_ = false;
  std::atomic<int> missing_core_{-1};
  int64_t reviewed_ns_ = 0, delayed_ns_ = 0;
  int64_t bound_ns_ = 0;                   ///< when it was bound last
  int64_t bind_again_ns_ = 0;
  int64_t release_ns_ = kFirstReleaseNs;  ///< how long it is let go next time
};

}  // namespace mimo_rt::cpu
