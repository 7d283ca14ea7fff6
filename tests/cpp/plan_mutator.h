// Takes plans apart and puts them together again, changed.
#pragma once

#include <mimo_rt/plan.h>

#include "plan/task.h"

#include <vector>

namespace mimo_rt {

/// Friend of Plan: the only way to make a plan other than Plan::build.
struct PlanMutator {
  explicit PlanMutator(const Plan& source) : plan(source), buffers(plan.buffers_), counters(plan.counters_),
                                             gate_counter(plan.gate_counter_), arena_bytes(plan.arena_bytes_) {
    for (uint32_t w = 0; w < plan.num_workers(); ++w)
      lists.emplace_back(plan.tasks(w).begin(), plan.tasks(w).end());
  }
  PlanMutator(const PlanMutator&) = delete;

  Plan finish() {
    plan.tasks_ = std::make_shared<std::vector<Task>>();
    plan.worker_begin_ = {0};
    for (const std::vector<Task>& list : lists) {
      plan.tasks_->insert(plan.tasks_->end(), list.begin(), list.end());
      plan.worker_begin_.push_back(static_cast<uint32_t>(plan.tasks_->size()));
    }
    return plan;
  }

  /// Makes totals equal to the signals there are, and waits for an old total wait for the new one.
  void repair_counters() {
    std::vector<uint32_t> signals(counters.size(), 0);
    for (const auto& list : lists)
      for (const Task& task : list)
        if (task.signal_counter != kNoCounter) ++signals[task.signal_counter];
    for (auto& list : lists)
      for (Task& task : list)
        for (Wait& wait : task.waits)
          if (wait.counter < counters.size() && wait.value && wait.value == counters[wait.counter].total)
            wait.value = signals[wait.counter];
    for (size_t c = 0; c < counters.size(); ++c) counters[c].total = signals[c];
  }

  bool is_tag(uint32_t counter) const {
    return counter < counters.size() && counters[counter].kind == CounterInfo::Kind::tag;
  }
  /// The tag edge that a task waits for, or nullptr.
  const Wait* tag_wait(const Task& task) const {
    for (uint32_t i = 0; i < task.num_waits; ++i)
      if (is_tag(task.waits[i].counter)) return &task.waits[i];
    return nullptr;
  }

  Plan plan;
  std::vector<BufferInfo>& buffers;
  std::vector<CounterInfo>& counters;
  uint32_t& gate_counter;
  uint64_t& arena_bytes;
  std::vector<std::vector<Task>> lists;  ///< [num_workers]
};

/// Whose tasks of `kind` run without what they wait for.
inline Plan without_waits(const Plan& plan, TaskKind kind) {
  PlanMutator mutator(plan);
  for (auto& list : mutator.lists)
    for (Task& task : list)
      if (task.kind == kind) task.num_waits = 0;
  return mutator.finish();
}

/// A round plan whose draft leaves the block as the test wrote it.
inline Plan without_proposals(const Plan& plan) {
  PlanMutator mutator(plan);
  for (auto& list : mutator.lists)
    for (Task& task : list)
      if (task.kind == TaskKind::draft_sample) task.tile_first = 1'000'000;
  return mutator.finish();
}

}  // namespace mimo_rt
