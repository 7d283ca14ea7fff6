// Who computes what of a phase: its own share, then what slower workers have left of theirs.
//
// A phase is all tasks of one op of one layer. A plan gives its workers equal shares, but they are
// not equally fast: cores differ, or serve another hardware thread, machine or process as well. So
// the work of a task falls into units. Its worker takes them from the front, half of those left at
// a time; who has finished takes from the back of others' tasks. Results do not depend on it: each
// is computed from the same inputs in the same order, whoever does it.
//
// Contract. Workers may compute each other's units only if the phase begins and ends as one: all
// its tasks wait for the same and signal one counter, and whoever waits for that counter, as
// somebody does, waits for all of them. A worker signals after the last unit that it took, so then
// all units are done, and nobody is in the phase any more when it begins again. WorkStealing finds
// the phases of a plan for which this holds; tasks of others stay alone.
#pragma once

#include "plan/task.h"

#include <mimo_rt/plan.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace mimo_rt::cpu {

struct UnitRange {
  uint32_t begin = 0, end = 0;
  bool is_empty() const { return begin == end; }
};

/// The units of a task that nobody has taken. Nothing has to be reset between epochs.
class UnitQueue {
 public:
  static constexpr uint32_t kMaxUnits = 0xffff;

  /// Half of what is left of `num_units` (at most kMaxUnits) units in this epoch, rounded up.
  UnitRange take_first(uint64_t epoch, uint32_t num_units) {
    return take(epoch, num_units, [](UnitRange left, uint32_t count) {
      return UnitRange{left.begin, left.begin + count};
    });
  }
  UnitRange take_last(uint64_t epoch, uint32_t num_units) {
    return take(epoch, num_units, [](UnitRange left, uint32_t count) {
      return UnitRange{left.end - count, left.end};
    });
  }

 private:
  /// Relaxed: what units read and write is ordered by the counters of the plan.
  template <typename Choose>
  UnitRange take(uint64_t epoch, uint32_t num_units, const Choose& choose) {
    const auto stamp = static_cast<uint32_t>(epoch + 1);  // 0 is before all epochs
    uint64_t seen = state_.load(std::memory_order_relaxed);
    for (;;) {
      const bool is_of_this_epoch = seen >> 32 == stamp;
      const UnitRange left = is_of_this_epoch ? UnitRange{static_cast<uint32_t>(seen >> 16 & 0xffff),
                                                          static_cast<uint32_t>(seen & 0xffff)}
                                              : UnitRange{0, num_units};
      if (left.is_empty()) return {};
      const UnitRange taken = choose(left, (left.end - left.begin + 1) / 2);
      const uint32_t begin = taken.begin == left.begin ? taken.end : left.begin;
      const uint32_t end = taken.begin == left.begin ? left.end : taken.begin;
      if (state_.compare_exchange_weak(seen, uint64_t{stamp} << 32 | begin << 16 | end,
                                       std::memory_order_relaxed))
        return taken;
    }
  }

  std::atomic<uint64_t> state_{0};  // epoch + 1 (32 bits), begin, end
};

/// The tasks of a phase that share their work, by worker.
struct SharedPhase {
  struct Part {
    const Task* task;
    UnitQueue* queue;
  };
  std::vector<Part> parts;
};

/// A task's place among those that it shares work with.
struct SharedPlace {
  const SharedPhase* phase = nullptr;  ///< nullptr: it stays alone
  uint32_t part_idx = 0;
};

class WorkStealing {
 public:
  explicit WorkStealing(const Plan& plan);

  SharedPlace place(uint32_t worker_idx, uint32_t task_idx) const {
    return places_[worker_idx][task_idx];
  }

 private:
  static constexpr size_t kQueuesPerLine = 64 / sizeof(UnitQueue);
  struct alignas(64) Line {
    UnitQueue queues[kQueuesPerLine];
  };

  std::vector<SharedPhase> phases_;
  std::unique_ptr<Line[]> lines_;                 // each of one worker's queues
  std::vector<std::vector<SharedPlace>> places_;  // [worker][task]
};

/// Runs the units of `task`, num_units(task) of them, then some of those that the others at its
/// place have left: run(task, begin, end) gets ranges of units of one task. With many workers not
/// everybody is asked for work: those at a distance of 1, 2, 4, …
template <typename NumUnits, typename Run>
void run_shared(const SharedPlace& place, const Task& task, uint64_t epoch,
                const NumUnits& num_units, const Run& run) {
  const uint32_t num_own = num_units(task);
  if (!place.phase || num_own > UnitQueue::kMaxUnits) {
    if (num_own) run(task, 0u, num_own);
    return;
  }
  const std::vector<SharedPhase::Part>& parts = place.phase->parts;
  UnitRange range;
  while (!(range = parts[place.part_idx].queue->take_first(epoch, num_own)).is_empty())
    run(task, range.begin, range.end);
  for (size_t distance = 1; distance < parts.size(); distance *= 2) {
    const SharedPhase::Part& other = parts[(place.part_idx + distance) % parts.size()];
    const uint32_t num_others = num_units(*other.task);
    if (num_others > UnitQueue::kMaxUnits) continue;  // its worker runs them all
    while (!(range = other.queue->take_last(epoch, num_others)).is_empty())
      run(*other.task, range.begin, range.end);
  }
}

}  // namespace mimo_rt::cpu
