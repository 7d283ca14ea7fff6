#include "cpu/work_stealing.h"

#include "plan/kinds.h"

#include <algorithm>
#include <map>
#include <span>
#include <tuple>

namespace mimo_rt::cpu {
namespace {

struct Member {
  uint32_t worker_idx, task_idx;
};
using Members = std::vector<Member>;

/// Kinds whose ops run their tiles as units.
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

std::span<const Wait> waits_of(const Task& task) { return {task.waits, task.num_waits}; }

bool contains(std::span<const Wait> waits, const Wait& wait) {
  return std::ranges::any_of(waits, [&](const Wait& other) {
    return other.counter == wait.counter && other.value == wait.value;
  });
}

/// How those wait that wait for a counter.
enum class Awaited : uint8_t { by_nobody, as_one, in_part };

/// What of a plan decides whether a phase begins and ends as one.
class PhaseRules {
 public:
  explicit PhaseRules(const Plan& plan)
      : plan_(plan), awaited_(plan.counters().size(), Awaited::by_nobody) {
    for (uint32_t w = 0; w < plan.num_workers(); ++w)
      for (const Task& task : plan.tasks(w))
        for (const Wait& wait : waits_of(task)) {
          if (!wait.value) continue;
          Awaited& awaited = awaited_[wait.counter];
          if (wait.value != plan.counters()[wait.counter].total) awaited = Awaited::in_part;
          else if (awaited == Awaited::by_nobody) awaited = Awaited::as_one;
        }
  }

  bool can_share(const Members& members) const {
    const Task& first = task_of(members[0]);
    const uint32_t counter = first.signal_counter;
    if (members.size() < 2 || counter == kNoCounter || awaited_[counter] != Awaited::as_one ||
        plan_.counters()[counter].total != members.size())
      return false;
    const auto is_like_first = [&](const Member& member) {
      const Task& task = task_of(member);
      return task.signal_counter == counter && task.flags == first.flags;
    };
    return std::ranges::all_of(members, is_like_first) && begins_as_one(members);
  }

 private:
  const Task& task_of(const Member& member) const {
    return plan_.tasks(member.worker_idx)[member.task_idx];
  }

  /// Whether each member has what any of them waits for. The gate does not count: a worker passes
  /// it with its first task.
  bool begins_as_one(const Members& members) const {
    std::vector<Wait> waits;  // a few, the same for most members
    for (const Member& member : members)
      for (const Wait& wait : waits_of(task_of(member)))
        if (wait.counter != plan_.gate_counter() && !contains(waits, wait)) waits.push_back(wait);
    return std::ranges::all_of(members, [&](const Member& member) {
      return std::ranges::all_of(waits, [&](const Wait& wait) { return has(member, wait); });
    });
  }

  /// Whether the member waits for it as well, or has done all of it before.
  bool has(const Member& member, const Wait& wait) const {
    if (contains(waits_of(task_of(member)), wait)) return true;
    uint32_t num_signals = 0;
    for (const Task& earlier : plan_.tasks(member.worker_idx).first(member.task_idx))
      num_signals += earlier.signal_counter == wait.counter;
    return num_signals >= wait.value && wait.value;
  }

  const Plan& plan_;
  std::vector<Awaited> awaited_;  // [counter]
};

/// By op and layer, workers ascending.
std::vector<Members> phases_of(const Plan& plan) {
  std::map<std::tuple<uint16_t, TaskKind>, Members> found;
  for (uint32_t w = 0; w < plan.num_workers(); ++w) {
    const std::span<const Task> tasks = plan.tasks(w);
    for (uint32_t i = 0; i < tasks.size(); ++i)
      if (has_units(tasks[i].kind)) found[{tasks[i].layer_idx, tasks[i].kind}].push_back({w, i});
  }
  std::vector<Members> phases;
  for (auto& [key, members] : found) phases.push_back(std::move(members));
  return phases;
}

}  // namespace

WorkStealing::WorkStealing(const Plan& plan) {
  const PhaseRules rules(plan);
  std::vector<Members> shared;
  for (Members& members : phases_of(plan))
    if (rules.can_share(members)) shared.push_back(std::move(members));
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
