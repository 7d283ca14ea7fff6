#include "cpu/work_stealing.h"

#include "plan/kinds.h"

#include <algorithm>
#include <span>
#include <utility>

namespace mimo_rt::cpu {
namespace {

struct Member {
  uint32_t worker_idx, task_idx;
};
using Members = std::vector<Member>;  // of a phase, workers ascending

/// Kinds whose ops run their tiles as units. The router's op could, but it is over in microseconds.
bool has_units(TaskKind kind) {
  switch (kind) {
    case TaskKind::qkv_proj:
    case TaskKind::o_proj:
    case TaskKind::expert_gate_up:
    case TaskKind::expert_down:
    case TaskKind::gate_up_proj:
    case TaskKind::down_proj:
    case TaskKind::lm_head:
    case TaskKind::context_fc:
    case TaskKind::draft_o_proj:
    case TaskKind::draft_gate_up_proj:
    case TaskKind::draft_down_proj:
    case TaskKind::draft_lm_head: return true;
    default: return false;
  }
}

/// Same inputs, same outputs: they differ in their tiles only.
bool is_same_op(const Task& a, const Task& b) {
  return stage_of(a) == stage_of(b) && a.flags == b.flags && a.input == b.input &&
         a.input2 == b.input2 && a.output == b.output && a.output2 == b.output2;
}

/// Walks through a plan phase by phase, if its phases come one after the other.
///
/// Here a phase is all tasks that signal one counter. The walk begins with the tasks that wait for
/// nothing of their epoch. When all tasks of a phase are known, the next phase is the tasks that
/// wait for all of them: they must be next in their workers' lists, signal one counter, and be all
/// that do so. Whatever does not fit ends the walk early, and nothing is shared.
class PhaseOrder {
 public:
  explicit PhaseOrder(const Plan& plan)
      : plan_(plan), next_(plan.num_workers(), 0), is_signalled_(plan.counters().size(), false) {}

  /// All phases in their order; none if there is no such order.
  std::vector<Members> find() {
    std::vector<Members> phases;
    if (!begins_at_gate()) return phases;
    while (take_next()) phases.push_back(last_);
    // The gate opens the next epoch, so nothing may be left then.
    const bool is_complete = is_at_end() && counter_ == plan_.gate_counter();
    return is_complete ? phases : std::vector<Members>{};
  }

 private:
  /// Whether no worker begins before the epoch before has ended: all wait for the gate, or for
  /// signals of their own epoch.
  bool begins_at_gate() const {
    for (uint32_t w = 0; w < plan_.num_workers(); ++w) {
      const std::span<const Task> tasks = plan_.tasks(w);
      const auto is_gated = [&](const Wait& wait) {
        return wait.value != 0 || wait.counter == plan_.gate_counter();
      };
      if (!tasks.empty() && std::ranges::none_of(waits_of(tasks[0]), is_gated)) return false;
    }
    return true;
  }

  bool is_at_end() const {
    for (uint32_t w = 0; w < plan_.num_workers(); ++w)
      if (next_[w] < plan_.tasks(w).size()) return false;
    return true;
  }

  /// Finds the phase after `last_`.
  bool take_next() {
    Members members;
    uint32_t counter = kNoCounter;
    for (uint32_t w = 0; w < plan_.num_workers(); ++w) {
      if (next_[w] == plan_.tasks(w).size()) continue;
      const Task& task = plan_.tasks(w)[next_[w]];
      if (!begins_after_last(task, w)) continue;
      if (members.empty()) counter = task.signal_counter;
      if (task.signal_counter != counter) return false;
      members.push_back({w, next_[w]});
    }
    if (counter == kNoCounter || is_signalled_[counter] ||
        plan_.counters()[counter].total != members.size())
      return false;
    for (const Member& member : members) ++next_[member.worker_idx];
    is_signalled_[counter] = true;
    last_ = std::move(members);
    counter_ = counter;
    return true;
  }

  /// Whether a worker's next task begins after all tasks of the last phase because of that phase.
  bool begins_after_last(const Task& task, uint32_t worker_idx) const {
    const bool waits = std::ranges::any_of(waits_of(task), &Wait::value);
    if (!waits) return last_.empty() || (last_.size() == 1 && last_[0].worker_idx == worker_idx);
    const bool waits_for_last = std::ranges::any_of(waits_of(task), [&](const Wait& wait) {
      return wait.counter == counter_ && wait.value == last_.size();
    });
    const auto is_before = [&](const Wait& wait) {
      return !wait.value || is_signalled_[wait.counter];
    };
    return waits_for_last && std::ranges::all_of(waits_of(task), is_before);
  }

  static std::span<const Wait> waits_of(const Task& task) { return {task.waits, task.num_waits}; }

  const Plan& plan_;
  std::vector<uint32_t> next_;      // [worker] task
  std::vector<bool> is_signalled_;  // [counter] by the phases found so far
  Members last_;                    // the phase found last
  uint32_t counter_ = kNoCounter;   // its counter
};

/// Those of a plan that share their work.
std::vector<Members> shared_phases(const Plan& plan) {
  std::vector<Members> phases = PhaseOrder(plan).find();
  const auto stays_alone = [&](const Members& members) {
    const auto task_of = [&](const Member& member) -> const Task& {
      return plan.tasks(member.worker_idx)[member.task_idx];
    };
    const Task& first = task_of(members[0]);
    const auto is_other_op = [&](const Member& m) { return !is_same_op(task_of(m), first); };
    return members.size() < 2 || !has_units(first.kind) ||
           std::ranges::any_of(members, is_other_op);
  };
  std::erase_if(phases, stays_alone);
  return phases;
}

}  // namespace

WorkStealing::WorkStealing(const Plan& plan) {
  const std::vector<Members> shared = shared_phases(plan);
  const size_t num_lines = (shared.size() + kQueuesPerLine - 1) / kQueuesPerLine;  // of a worker
  lines_ = std::make_unique<Line[]>(num_lines * plan.num_workers());
  for (uint32_t w = 0; w < plan.num_workers(); ++w) places_.emplace_back(plan.tasks(w).size());
  phases_.resize(shared.size());
  for (size_t p = 0; p < shared.size(); ++p)
    for (const Member& member : shared[p]) {
      std::vector<SharedPhase::Part>& parts = phases_[p].parts;
      Line& line = lines_[member.worker_idx * num_lines + p / kQueuesPerLine];
      places_[member.worker_idx][member.task_idx] = {&phases_[p],
                                                     static_cast<uint32_t>(parts.size())};
      parts.push_back({&plan.tasks(member.worker_idx)[member.task_idx],
                       &line.queues[p % kQueuesPerLine]});
    }
}

}  // namespace mimo_rt::cpu
