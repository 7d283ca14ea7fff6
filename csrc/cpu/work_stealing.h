// Who computes what of a phase: its own share, then what slower workers have left of theirs.
//
// A phase is all tasks of one op of one layer. A plan gives its workers equal shares, but they are
// not equally fast: cores differ, or serve another hardware thread, machine or process as well. So
// the work of a task falls into units. Its worker takes them from the front, a quarter of those
// left at a time; who has finished its own takes from the back of others'. Results do not depend on
// it: each is computed from the same inputs in the same order, whoever does it.
//
// Contract. Work is shared only in plans whose phases come one after the other: the tasks of a
// phase begin after all tasks of the phase before it have signalled, those of the first phase after
// the epoch before has ended, and the last phase's signal ends the epoch. In other plans everybody
// stays alone. Within a phase, tasks share if they are of one op and differ in their tiles only.
//
// Why that is enough. A thief computes units of another's task during its own task of the phase,
// after its own waits and before its own signal. So between the last signal of the phase before and
// the last signal of this one nothing runs but units of this phase, and all of them do:
// - What a unit reads has been written, even if its worker is still on its way to the task: all
//   tasks of the phase wait for everything of the phases before, the thief's own as well.
// - A worker may signal while a thief still computes units of its task. Nobody takes that signal
//   for the end of the task: whoever reads, overwrites or reuses something in a later phase waits
//   for all signals of this one, the thief's among them. That holds for the task's worker too. An
//   edge that is only the order of one worker's list would not (it may go on to its next task
//   before its last one is complete), so there is none, except after a phase of a single task.
// - Units that run at the same time write different places: those of a task cover different tiles or
//   parts of one, and Plan::verify() proves that tasks of one op cover different tiles.
// - A queue is used from the begin of its phase to the end in each epoch, never of two epochs at a
//   time. So it only has to tell the epoch at hand from those before.
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

  /// A quarter, rounded up, of what is left of `num_units` (at most kMaxUnits) units in this epoch:
  /// that much waits for a worker that loses its core meanwhile. Relaxed: what units read and write
  /// is ordered by the counters of the plan.
  UnitRange take(uint64_t epoch, uint32_t num_units, bool from_front) {
    uint64_t seen = state_.load(std::memory_order_relaxed);
    for (;;) {
      const UnitRange left = left_in(epoch, num_units, seen);
      if (left.is_empty()) return {};
      const uint32_t count = (left.end - left.begin + 3) / 4;
      UnitRange taken = left, rest = left;
      if (from_front) taken.end = rest.begin = left.begin + count;
      else taken.begin = rest.end = left.end - count;
      const uint64_t next = stamp(epoch) << 32 | rest.begin << 16 | rest.end;
      if (state_.compare_exchange_weak(seen, next, std::memory_order_relaxed)) return taken;
    }
  }

 private:
  /// 32 bits, never 0: that is before all epochs. A queue that is left alone for 2^32 - 1 epochs
  /// would take the next for that of its last use.
  static constexpr uint64_t stamp(uint64_t epoch) { return epoch % 0xffffffffu + 1; }

  static UnitRange left_in(uint64_t epoch, uint32_t num_units, uint64_t state) {
    if (state >> 32 != stamp(epoch)) return {0, num_units};
    return {static_cast<uint32_t>(state >> 16 & 0xffff), static_cast<uint32_t>(state & 0xffff)};
  }

  std::atomic<uint64_t> state_{0};  // stamp (32 bits), begin, end of what is left
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

/// Runs what is left of a task's units.
template <typename Run>
void run_left(const SharedPhase::Part& part, uint64_t epoch, uint32_t num_units, bool from_front,
              const Run& run) {
  for (;;) {
    const UnitRange range = part.queue->take(epoch, num_units, from_front);
    if (range.is_empty()) return;
    run(*part.task, range.begin, range.end);
  }
}

/// Runs the units of `task`, num_units(task) of them, then some of those that the others at its
/// place have left: run(task, begin, end) gets ranges of units of one task. All workers must agree
/// on num_units. With many of them not everybody is asked for work: those at a distance of 1, 2, 4…
template <typename NumUnits, typename Run>
void run_shared(const SharedPlace& place, const Task& task, uint64_t epoch,
                const NumUnits& num_units, const Run& run) {
  const uint32_t num_own = num_units(task);
  if (!place.phase || num_own > UnitQueue::kMaxUnits) {
    if (num_own) run(task, 0u, num_own);
    return;
  }
  const std::vector<SharedPhase::Part>& parts = place.phase->parts;
  run_left(parts[place.part_idx], epoch, num_own, true, run);
  for (size_t distance = 1; distance < parts.size(); distance *= 2) {
    const SharedPhase::Part& other = parts[(place.part_idx + distance) % parts.size()];
    const uint32_t num_others = num_units(*other.task);
    if (num_others > UnitQueue::kMaxUnits) continue;  // its worker runs them all
    run_left(other, epoch, num_others, false, run);
  }
}

}  // namespace mimo_rt::cpu
