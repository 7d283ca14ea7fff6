#include "plan/wait_text.h"

#include "core/checks.h"
#include "plan/task.h"

namespace mimo_rt {

std::string wait_text(const Plan& plan, uint32_t worker_idx, uint32_t task_idx, uint32_t counter,
                      uint64_t expected, uint64_t seen) {
  const std::span<const Task> tasks = plan.tasks(worker_idx);
  std::string who = "the end of the round";
  if (task_idx < tasks.size()) {
    const Task& task = tasks[task_idx];
    const std::string layer = task.layer_idx == kNoLayer ? "" : concat(", layer ", task.layer_idx);
    who = concat("task ", task_idx, " (", task_kind_name(task.kind), layer, ")");
  }
  const CounterInfo& info = plan.counters()[counter];
  const bool is_tag = info.kind == CounterInfo::Kind::tag;
  return concat("worker ", worker_idx, " ", who, " waits for ", is_tag ? "tag edge '" : "counter '",
                info.name, is_tag ? "': expected " : "': expected >= ", expected, ", saw ", seen);
}

}  // namespace mimo_rt
