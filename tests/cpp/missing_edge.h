// Plans that lack one of their edges.
#pragma once

#include "plan_mutator.h"

#include <functional>
#include <random>
#include <string>

namespace fixture {

using namespace mimo_rt;

/// The plan without one wait, or without one signal.
struct MissingEdge {
  Plan plan;
  std::string name;
  bool is_tag;  ///< the edge is a tag edge
};

/// A random one of the tasks that `wanted` picks.
inline MissingEdge drop_edge(const Plan& plan, uint32_t seed,
                             const std::function<bool(const Task&)>& wanted = [](const Task&) { return true; }) {
  std::mt19937 random(seed);
  PlanMutator changed(plan);
  for (;;) {
    std::vector<Task>& list = changed.lists[random() % changed.lists.size()];
    Task& task = list[random() % list.size()];
    const bool is_signal = random() % 4 == 0;
    if (!wanted(task) || (!is_signal && task.num_waits == 0)) continue;
    std::string name = std::string(is_signal ? "signal of " : "wait of ") +
                       task_kind_name(task.kind) + ", layer " + std::to_string(task.layer_idx);
    uint32_t counter = task.signal_counter;
    if (is_signal) {
      task.signal_counter = kNoCounter;
    } else {
      const uint32_t dropped = random() % task.num_waits;
      counter = task.waits[dropped].counter;
      if (dropped == 0) task.waits[0] = task.waits[1];
      task.waits[--task.num_waits] = {kNoCounter, 0};
    }
    const bool is_tag = counter != kNoCounter && plan.counters()[counter].kind == CounterInfo::Kind::tag;
    return {changed.finish(), std::move(name), is_tag};
  }
}

inline bool is_refused(const Plan& plan) {
  try {
    (void)plan.verify();
    return false;
  } catch (const Error& error) {
    return error.code() == ErrorCode::plan_invalid;
  }
}

}  // namespace fixture
