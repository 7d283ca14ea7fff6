// Which tasks of one epoch are certain to be complete when a task starts.
//
// Counters only grow, so a wait that holds goes on to hold: running one task never disables another. In such a system
// the set of tasks that can run at all does not depend on the order in which they are run. So when one greedy run
// finishes every list, every run does (with workers that keep going), and when it gets stuck, every run gets stuck at
// the same place.
//
// What a wait {c, v} guarantees: signal s has happened if the count cannot reach v without it. Without s, its worker
// does not get to its later signals of c either; let m be their number with s included. Every other signal of the epoch
// may come first, whatever the greedy run visits first. Then total - m < v proves that s has happened. (Signals of
// other workers that need s in turn are not counted: fewer guarantees, never false ones.)
// With v == total, as the planner writes it, every signal is guaranteed.
//
// A tag edge passes when its producer has published, so it counts here like any other. But a word releases nothing but
// itself: nothing else that came before the producer's end is certain for who has read it (DataFlow knows of the words).
#pragma once

#include <mimo_rt/plan.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace mimo_rt {

/// clock[w]: so many tasks of worker w, from the front of its list, are certain to have completed.
using Clock = std::vector<uint32_t>;

inline void join(Clock& into, const Clock& other) {
  for (size_t w = 0; w < into.size(); ++w) into[w] = into[w] < other[w] ? other[w] : into[w];
}

class EpochOrder {
 public:
  explicit EpochOrder(const Plan& plan);

  /// Visits every task in an order in which the epoch can run. `before`: the clock when the task starts.
  /// @throws Error{plan_invalid} when the epoch cannot complete
  using Visit = std::function<void(uint32_t worker_idx, uint32_t task_idx, const Clock& before)>;
  void run(const Visit& visit);

  /// Proves that epochs do not overlap; call after run().
  ///
  /// (a) When all signals of the gate are there, all tasks of the epoch have completed: each signals it, or comes before
  /// one that does. (b) Every worker's first task waits for the gate of all earlier epochs, or for a signal of its own
  /// epoch. The task of epoch e + 1 that starts first cannot have waited for such a signal: it has waited for the gate,
  /// when every task of epoch e had completed. Whoever waits for a signal of epoch e + 1 comes after that task, and the
  /// counter has released what the signaller had seen; a tag edge releases nothing, so it does not count here. By
  /// induction no task of epoch e + 1 starts before every task of epoch e has completed, so within an epoch all counts are
  /// its own, as run() assumes. It also means that nobody writes the words that a tag edge has in epoch e + 1, let alone
  /// those of e + 2 in the same place, before all readers of epoch e have read.
  void check_gate() const;

 private:
  struct Counter {
    uint32_t count = 0;
    Clock all;  ///< join of all signallers so far
    struct Signal {
      uint32_t worker_idx;
      Clock clock;
    };
    bool keeps_signals() const { return !num_signals.empty(); }
    std::vector<Signal> signals;        ///< so far, if kept; those of one worker in the order of its list
    std::vector<uint32_t> num_signals;  ///< [num_workers] per epoch, if some wait asks for fewer than all
  };

  bool ready(const Task& task) const;
  void absorb_waits(const Task& task, Clock& clock) const;
  void join_guaranteed(const Counter& counter, uint32_t total, uint32_t value, Clock& clock) const;
  void signal(const Task& task, uint32_t worker_idx, const Clock& after);
  [[noreturn]] void report_stuck(const std::vector<uint32_t>& next) const;

  const Plan& plan_;
  std::vector<Counter> counters_;
  std::vector<Clock> clocks_;  ///< [num_workers] after the worker's last visited task
};

}  // namespace mimo_rt
