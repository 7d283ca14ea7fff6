// Ways to corrupt the tag edges of a plan, and ways to change them without harm.
#pragma once

#include "plan_mutations.h"

namespace plan_mutations {

/// A task that waits for a tag edge.
inline std::optional<Place> pick_reader(PlanMutator& m, Random& random) {
  return pick(m, random, [&](const Task& task) { return m.tag_wait(task) != nullptr; });
}
inline std::optional<Place> pick_producer(PlanMutator& m, Random& random) {
  return pick(m, random, [&](const Task& task) { return m.is_tag(task.signal_counter); });
}

/// The place of its tag edge among the waits of a task that has one.
inline uint32_t tag_place(const PlanMutator& m, const Task& task) {
  return static_cast<uint32_t>(m.tag_wait(task) - task.waits);
}
inline void drop_wait_at(Task& task, uint32_t i) {
  task.waits[i] = task.waits[--task.num_waits];
  task.waits[task.num_waits] = {kNoCounter, 0};
}

inline bool drop_tag_wait(PlanMutator& m, Random& random) {
  const auto place = pick_reader(m, random);
  if (!place) return false;
  drop_wait_at(at(m, *place), tag_place(m, at(m, *place)));
  return true;
}
inline bool redirect_tag_wait(PlanMutator& m, Random& random) {  // to another layer's
  const auto place = pick_reader(m, random);
  if (!place) return false;
  Wait& wait = at(m, *place).waits[tag_place(m, at(m, *place))];
  const uint32_t before = wait.counter;
  wait.counter = at(m, *pick_producer(m, random)).signal_counter;
  return wait.counter != before;
}
/// The reader keeps a counter to which the producer's worker has added later.
inline bool read_by_transitivity(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, [&](const Task& task) {
    return task.kind == TaskKind::expert_down && task.num_waits == 2 && m.tag_wait(task);
  });
  if (!place) return false;
  drop_wait_at(at(m, *place), tag_place(m, at(m, *place)));
  return true;
}
/// The reader has nothing but the tag edge, though it brings one buffer only.
inline bool trust_tag_for_all(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, [&](const Task& task) {
    return task.kind == TaskKind::expert_gate_up && task.num_waits == 2 && m.tag_wait(task);
  });
  if (!place) return false;
  Task& task = at(m, *place);
  drop_wait_at(task, 1 - tag_place(m, task));
  return true;
}
/// Somebody else publishes the same, by the same edge or by one of its own.
inline bool second_tag_writer(PlanMutator& m, Random& random) {
  const auto place = pick_producer(m, random);
  if (!place) return false;
  Task task = at(m, *place);
  if (random.coin()) {
    m.counters.push_back(m.counters[task.signal_counter]);
    task.signal_counter = static_cast<uint32_t>(m.counters.size()) - 1;
  }
  const uint32_t worker = random.below(m.lists.size());
  uint32_t index = place->index + 1;
  if (worker != place->worker) index = random.below(m.lists[worker].size() + 1);
  insert(m, worker, index, task);
  m.repair_counters();
  return true;
}
/// A counter becomes a tag edge, of what a task writes that signals it or of anything.
inline bool counter_to_tag(PlanMutator& m, Random& random) {
  const auto is_alone = [&](const Task& task) {
    return task.signal_counter != kNoCounter && m.counters[task.signal_counter].total == 1 &&
           !m.is_tag(task.signal_counter);
  };
  const auto place = random.coin() ? pick(m, random, is_alone) : pick(m, random);
  if (!place || at(m, *place).signal_counter == kNoCounter) return false;
  CounterInfo& info = m.counters[at(m, *place).signal_counter];
  info.kind = CounterInfo::Kind::tag;
  info.buffer = random.below(4) ? at(m, *place).output : static_cast<uint16_t>(random.below(m.buffers.size()));
  return true;
}
inline bool other_tag_buffer(PlanMutator& m, Random& random) {
  const auto place = pick_producer(m, random);
  if (!place) return false;
  CounterInfo& info = m.counters[at(m, *place).signal_counter];
  const uint16_t before = info.buffer;
  info.buffer = random.below(8) ? static_cast<uint16_t>(random.below(m.buffers.size())) : kNoBuffer;
  return info.buffer != before;
}

// Changes that keep the meaning.
inline bool tag_to_counter(PlanMutator& m, Random& random) {
  const auto place = pick_producer(m, random);
  if (!place) return false;
  CounterInfo& info = m.counters[at(m, *place).signal_counter];
  info.kind = CounterInfo::Kind::counter;
  info.buffer = kNoBuffer;
  return true;
}

inline const NamedMutation kHarmfulToTags[] = {{"drop_tag_wait", drop_tag_wait},
                                               {"redirect_tag_wait", redirect_tag_wait},
                                               {"read_by_transitivity", read_by_transitivity},
                                               {"trust_tag_for_all", trust_tag_for_all},
                                               {"second_tag_writer", second_tag_writer},
                                               {"counter_to_tag", counter_to_tag},
                                               {"other_tag_buffer", other_tag_buffer}};
inline const NamedMutation kHarmlessToTags[] = {{"tag_to_counter", tag_to_counter}};

}  // namespace plan_mutations
