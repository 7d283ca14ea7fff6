// Ways to corrupt a plan at random, and ways to change it without harm.
#pragma once

#include "plan_mutator.h"

#include "plan/buffers.h"
#include "plan/task.h"

#include <algorithm>
#include <optional>
#include <random>
#include <utility>
#include <vector>

namespace plan_mutations {

using namespace mimo_rt;

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint32_t below(size_t bound) { return static_cast<uint32_t>(engine_() % bound); }
  bool coin() { return engine_() & 1; }

 private:
  std::mt19937_64 engine_;
};

struct Place {
  uint32_t worker, index;
};

/// A random task; `wanted` filters.
template <typename Wanted>
std::optional<Place> pick(const PlanMutator& m, Random& random, const Wanted& wanted) {
  std::vector<Place> places;
  for (uint32_t w = 0; w < m.lists.size(); ++w)
    for (uint32_t i = 0; i < m.lists[w].size(); ++i)
      if (wanted(m.lists[w][i])) places.push_back({w, i});
  if (places.empty()) return std::nullopt;
  return places[random.below(places.size())];
}
inline Place pick(const PlanMutator& m, Random& random) {
  return *pick(m, random, [](const Task&) { return true; });
}
inline Task& at(PlanMutator& m, Place place) { return m.lists[place.worker][place.index]; }
inline bool has_wait(const Task& task) { return task.num_waits > 0; }
inline bool has_counted_wait(const Task& task) { return task.num_waits && task.waits[task.num_waits - 1].value > 0; }

inline void insert(PlanMutator& m, uint32_t worker, uint32_t index, const Task& task) {
  m.lists[worker].insert(m.lists[worker].begin() + index, task);
}
inline Task take(PlanMutator& m, Place place) {
  const Task task = at(m, place);
  m.lists[place.worker].erase(m.lists[place.worker].begin() + place.index);
  return task;
}

/// Returns false when the plan offers no place for it.
using Mutation = bool (*)(PlanMutator&, Random&);

inline bool drop_signal(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, [](const Task& t) { return t.signal_counter != kNoCounter; });
  at(m, *place).signal_counter = kNoCounter;
  if (random.coin()) m.repair_counters();
  return true;
}
inline bool redirect_signal(PlanMutator& m, Random& random) {
  at(m, pick(m, random)).signal_counter = random.below(m.counters.size());
  if (random.coin()) m.repair_counters();
  return true;
}
inline bool drop_wait(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, has_wait);
  Task& task = at(m, *place);
  const uint32_t which = random.below(task.num_waits);
  if (which == 0) task.waits[0] = task.waits[1];
  task.waits[--task.num_waits] = {kNoCounter, 0};
  return true;
}
inline bool lower_wait(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, has_counted_wait);
  if (!place) return false;
  Wait& wait = at(m, *place).waits[at(m, *place).num_waits - 1];
  wait.value -= 1 + random.below(wait.value);
  return true;
}
// What is waited for may not be what is needed.
inline bool swap_shares_and_lower_wait(PlanMutator& m, Random& random) {
  const auto needs_few_rows = [](const Task& t) {  // the rows that its worker embeds, unless shares are swapped
    return has_counted_wait(t) && t.kind == TaskKind::rms_norm && t.layer_idx == 0 && !(t.flags & kMlpNorm);
  };
  auto place = pick(m, random, has_counted_wait);
  if (const auto other = pick(m, random, needs_few_rows); other && random.coin()) place = other;
  if (!place) return false;
  Wait& wait = at(m, *place).waits[at(m, *place).num_waits - 1];
  const auto signals = [&](const Task& task) { return task.signal_counter == wait.counter; };
  const auto a = pick(m, random, signals), b = pick(m, random, signals);
  if (!a || !b || &at(m, *a) == &at(m, *b) || wait.value < 2) return false;
  std::swap(at(m, *a).tile_first, at(m, *b).tile_first);
  if (trip_count(at(m, *a).kind) == TripCount::once) std::swap(at(m, *a).tile_end, at(m, *b).tile_end);
  --wait.value;
  return true;
}
inline bool raise_wait(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, has_wait);
  at(m, *place).waits[random.below(at(m, *place).num_waits)].value += 1 + random.below(2);
  return true;
}
inline bool redirect_wait(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, has_wait);
  Wait& wait = at(m, *place).waits[random.below(at(m, *place).num_waits)];
  wait.counter = random.below(m.counters.size());
  wait.value = m.counters[wait.counter].total;
  return true;
}
inline bool swap_tasks(PlanMutator& m, Random& random) {
  const Place a = pick(m, random);
  std::vector<Task>& list = m.lists[a.worker];
  if (list.size() < 2) return false;
  const uint32_t b = random.coin() ? (a.index + 1) % static_cast<uint32_t>(list.size()) : random.below(list.size());
  std::swap(list[a.index], list[b]);
  return b != a.index;
}
inline void exchange_work(Task& x, Task& y) {
  std::swap(x, y);
  std::swap(x.num_waits, y.num_waits);
  std::swap(x.waits, y.waits);
  std::swap(x.signal_counter, y.signal_counter);
}
inline bool swap_work(PlanMutator& m, Random& random) {  // only what they do, not what they wait for
  const Place a = pick(m, random), b = pick(m, random);
  Task &x = at(m, a), &y = at(m, b);
  exchange_work(x, y);
  return true;
}
inline bool move_task(PlanMutator& m, Random& random) {
  const Task task = take(m, pick(m, random));
  const uint32_t worker = random.below(m.lists.size());
  std::vector<uint32_t> near;  // next to a task of the same layer, or anywhere
  for (uint32_t i = 0; i < m.lists[worker].size(); ++i)
    if (m.lists[worker][i].layer_idx == task.layer_idx) near.push_back(i);
  const uint32_t index =
      random.coin() && !near.empty() ? near[random.below(near.size())] : random.below(m.lists[worker].size() + 1);
  insert(m, worker, index, task);
  return true;
}
inline bool duplicate_task(PlanMutator& m, Random& random) {
  const Task task = at(m, pick(m, random));
  const uint32_t worker = random.below(m.lists.size());
  insert(m, worker, random.below(m.lists[worker].size() + 1), task);
  if (random.coin()) m.repair_counters();
  return true;
}
inline bool duplicate_in_place(PlanMutator& m, Random& random) {
  const Place place = pick(m, random);
  insert(m, place.worker, place.index, at(m, place));
  m.repair_counters();
  return true;
}
inline bool remove_task(PlanMutator& m, Random& random) {
  take(m, pick(m, random));
  if (random.coin()) m.repair_counters();
  return true;
}
inline BufferInfo* pick_in_arena(PlanMutator& m, Random& random) {
  std::vector<BufferInfo*> found;
  for (BufferInfo& info : m.buffers)
    if (info.space == BufferInfo::Space::arena && info.bytes) found.push_back(&info);
  return found[random.below(found.size())];
}
inline bool shrink_buffer(PlanMutator& m, Random& random) {
  BufferInfo& info = m.buffers[random.below(m.buffers.size())];
  if (info.rows < 2 || info.cols < 1) return false;
  switch (random.below(5)) {
    case 0: info.rows -= 1; break;
    case 1: info.cols -= 1; break;
    case 2: info.bytes -= info.element_bytes; break;
    case 3: info.rows = info.cols = 0, info.bytes = 0; break;
    default: info.rows = info.cols = 1u << 31, info.bytes = 0;  // 2^64 bytes or 2^63
  }
  return true;
}
inline bool alias_buffers(PlanMutator& m, Random& random) {
  BufferInfo& a = *pick_in_arena(m, random);
  const BufferInfo& b = *pick_in_arena(m, random);
  if (&a == &b) return false;
  a.offset = random.coin() ? b.offset : (b.offset + b.bytes - 1) / 64 * 64;
  m.arena_bytes += a.bytes;  // so that the end of the arena is not what refuses it
  return true;
}
inline bool move_buffer(PlanMutator& m, Random& random) {
  BufferInfo& info = *pick_in_arena(m, random);
  info.offset = random.coin() ? m.arena_bytes : info.offset + 2 * (1 + random.below(31));
  return true;
}
inline bool tile_range(PlanMutator& m, Random& random) {
  Task& task = at(m, pick(m, random));
  uint32_t& field = random.coin() ? task.tile_first : task.tile_end;
  const uint32_t before = field;
  field = random.coin() ? before + 1 + random.below(3) : before - std::min(before, 1 + random.below(3));
  return field != before;
}
inline bool tile_range_pair(PlanMutator& m, Random& random) {  // a gap or an overlap with the next worker's range
  const auto place =
      pick(m, random, [](const Task& t) { return trip_count(t.kind) == TripCount::once && t.tile_end > 2; });
  if (!place) return false;
  Task& task = at(m, *place);
  if (random.coin()) task.tile_end -= 1;
  else task.tile_first += 1;
  return true;
}
inline bool stride(PlanMutator& m, Random& random) {
  Task& task = at(m, pick(m, random));
  const uint32_t before = task.tile_stride;
  task.tile_stride = random.coin() ? before + 1 : random.below(5);
  return task.tile_stride != before;
}
inline bool change_buffers(PlanMutator& m, Random& random) {
  Task& task = at(m, pick(m, random));
  uint16_t* const fields[] = {&task.input, &task.input2, &task.output, &task.output2};
  uint16_t& field = *fields[random.below(4)];
  const uint16_t before = field;
  field = static_cast<uint16_t>(random.below(m.buffers.size()));
  return field != before && before != kNoBuffer;
}
// A task runs ahead of its predecessor, and waits pass by.
inline bool read_before_write(PlanMutator& m, Random& random) {
  const Place place = pick(m, random);
  if (place.index == 0) return false;
  std::vector<Task>& list = m.lists[place.worker];
  Task &early = list[place.index], &late = list[place.index - 1];
  std::swap(early.num_waits, late.num_waits);
  std::swap(early.waits, late.waits);
  std::swap(early, late);
  return true;
}
inline bool late_wait(PlanMutator& m, Random& random) {  // a wait slips to the next task
  const auto place = pick(m, random, has_counted_wait);
  if (!place || place->index + 1 == m.lists[place->worker].size()) return false;
  Task& task = at(m, *place);
  Task& next = m.lists[place->worker][place->index + 1];
  if (next.num_waits == 2) return false;
  next.waits[next.num_waits++] = task.waits[--task.num_waits];
  return true;
}
inline bool drop_gate_wait(PlanMutator& m, Random& random) {
  std::vector<Task>& list = m.lists[random.below(m.lists.size())];
  if (list.empty() || list[0].waits[0].counter != m.gate_counter) return false;
  list[0].waits[0] = list[0].waits[1];
  list[0].waits[1] = {kNoCounter, 0};
  --list[0].num_waits;
  return true;
}
inline bool early_gate(PlanMutator& m, Random& random) {
  const auto gate = pick(m, random, [&](const Task& t) { return t.signal_counter == m.gate_counter; });
  std::swap(at(m, *gate).signal_counter, at(m, pick(m, random)).signal_counter);
  if (random.coin()) m.repair_counters();
  return true;
}
inline bool other_gate(PlanMutator& m, Random& random) {
  const uint32_t before = m.gate_counter;
  m.gate_counter = random.below(m.counters.size());
  for (auto& list : m.lists)
    for (Task& task : list)
      for (Wait& wait : task.waits)
        if (wait.value == 0 && wait.counter == before) wait.counter = m.gate_counter;
  return m.gate_counter != before;
}
inline bool counter_total(PlanMutator& m, Random& random) {
  uint32_t& total = m.counters[random.below(m.counters.size())].total;
  total = random.coin() ? total + 1 : total - 1;
  return true;
}
inline bool change_kind(PlanMutator& m, Random& random) {
  Task& task = at(m, pick(m, random));
  const TaskKind before = task.kind;
  task.kind = static_cast<TaskKind>(random.below(kNumTaskKinds + 1));
  return task.kind != before;
}
inline bool change_layer(PlanMutator& m, Random& random) {
  Task& task = at(m, pick(m, random));
  const uint16_t before = task.layer_idx;
  task.layer_idx = random.below(5) ? static_cast<uint16_t>(random.below(m.plan.shape().layers.size() + 1)) : kNoLayer;
  if (random.coin() && before != kNoLayer && task.layer_idx != kNoLayer) {  // with the KV buffer to match
    if (task.kind == TaskKind::qkv_proj) task.output2 = static_cast<uint16_t>(kFirstKv + task.layer_idx);
    if (task.kind == TaskKind::attention) task.input2 = static_cast<uint16_t>(kFirstKv + task.layer_idx);
  }
  return task.layer_idx != before;
}
inline bool change_flags(PlanMutator& m, Random& random) {
  Task& task = at(m, pick(m, random));
  task.flags = static_cast<uint16_t>(task.flags ^ (1u << random.below(4)));
  if (random.coin() && task.kind == TaskKind::embed) task.input = task.flags & kFromBlock ? kBlock : kTokens;
  if (random.coin() && (task.kind == TaskKind::expert_down || task.kind == TaskKind::down_proj))
    task.output2 = task.flags & kCapture ? uint16_t{kFeatures} : kNoBuffer;
  const bool fused = task.flags & kFusedNorm;
  if (random.coin() && task.input <= kH) task.input = fused ? kX : kH;
  if (random.coin() && (task.input == kDraftX || task.input == kDraftH)) task.input = fused ? kDraftX : kDraftH;
  if (random.coin() && (task.input == kContext || task.input == kContextH)) task.input = fused ? kContext : kContextH;
  return true;
}

// Corruptions of plans with a draft.
/// Two phases trade places on every worker that has both.
inline bool swap_phases(PlanMutator& m, TaskKind a, TaskKind b, uint16_t layer_b = kNoLayer) {
  bool changed = false;
  for (auto& list : m.lists) {
    const auto first = std::find_if(list.begin(), list.end(), [&](const Task& t) { return t.kind == a; });
    const auto second = std::find_if(list.begin(), list.end(), [&](const Task& t) {
      return t.kind == b && (layer_b == kNoLayer || t.layer_idx == layer_b);
    });
    if (first == list.end() || second == list.end()) continue;
    exchange_work(*first, *second);
    changed = true;
  }
  return changed;
}
inline bool drop_capture(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, [](const Task& t) { return (t.flags & kCapture) != 0; });
  if (!place) return false;
  const uint16_t layer = at(m, *place).layer_idx;
  const bool whole_layer = random.coin();
  for (auto& list : m.lists)
    for (Task& task : list)
      if ((task.flags & kCapture) && (&task == &at(m, *place) || (whole_layer && task.layer_idx == layer))) {
        task.flags = static_cast<uint16_t>(task.flags & ~kCapture);
        if (random.below(4)) task.output2 = kNoBuffer;
      }
  return true;
}
inline bool swap_draft_sample_and_embed(PlanMutator& m, Random&) {
  return swap_phases(m, TaskKind::draft_sample, TaskKind::embed);
}
inline bool accept_before_lm_head(PlanMutator& m, Random&) {
  return swap_phases(m, TaskKind::accept, TaskKind::lm_head);
}
inline bool context_kv_after_attention(PlanMutator& m, Random& random) {
  const uint32_t num_layers = m.plan.shape().draft.num_layers;
  if (!num_layers) return false;
  const auto layer = static_cast<uint16_t>(random.below(num_layers));
  return swap_phases(m, TaskKind::context_kv, TaskKind::draft_attention, layer);
}
inline bool context_after_capture(PlanMutator& m, Random& random) {
  const TaskKind end = random.coin() ? TaskKind::expert_down : TaskKind::down_proj;
  return swap_phases(m, TaskKind::context_fc, random.coin() ? end : TaskKind::lm_head);
}
inline bool is_draft_layer_kind(const Task& task) {
  return task.kind >= TaskKind::draft_qkv_proj && task.kind <= TaskKind::draft_down_proj;
}
inline bool swap_draft_layers(PlanMutator& m, Random& random) {  // of all kinds, or of one
  const auto only = static_cast<TaskKind>(static_cast<uint16_t>(TaskKind::draft_qkv_proj) + random.below(5));
  const bool all = random.coin();
  const uint32_t num_layers = m.plan.shape().draft.num_layers;
  bool changed = false;
  for (auto& list : m.lists)
    for (Task& task : list)
      if (is_draft_layer_kind(task) && (all || task.kind == only)) {
        task.layer_idx = static_cast<uint16_t>(num_layers - 1 - task.layer_idx);
        changed = true;
      }
  return changed;
}
inline bool wrong_draft_layer(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, is_draft_layer_kind);
  if (!place) return false;
  at(m, *place).layer_idx = static_cast<uint16_t>(random.coin() ? at(m, *place).layer_idx ^ 1 : random.below(4));
  return true;
}
inline bool shrink_block(PlanMutator& m, Random& random) {
  BufferInfo& info = m.buffers[kBlock];
  if (!info.bytes) return false;
  switch (random.below(3)) {
    case 0: info.cols -= 1; break;
    case 1: info.bytes -= 4; break;
    default: info.rows = 0, info.bytes = 0;
  }
  return true;
}
inline bool split_context_kv(PlanMutator& m, Random& random) {  // one head's keys or values are left out or made twice
  const auto place = pick(m, random, [](const Task& t) { return t.kind == TaskKind::context_kv; });
  if (!place) return false;
  Task& task = at(m, *place);
  if (random.coin()) ++task.tile_first;
  else if (task.tile_first) --task.tile_first;
  else return false;
  return true;
}

// Changes that keep the meaning.
inline bool split_task(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, [](const Task& t) { return t.signal_counter != 0; });
  Task second = at(m, *place);
  Task& first = at(m, *place);
  if (first.kind == TaskKind::select_experts || first.kind == TaskKind::sample ||
      first.kind == TaskKind::accept)
    return false;
  if (trip_count(first.kind) == TripCount::once) {
    if (first.tile_end - first.tile_first < 2) return false;
    first.tile_end = second.tile_first = first.tile_first + 1 + random.below(first.tile_end - first.tile_first - 1);
  } else {
    second.tile_first += first.tile_stride;
    first.tile_stride = second.tile_stride = 2 * first.tile_stride;
    const PlanShape& shape = m.plan.shape();
    const uint32_t tokens = m.plan.options().max_tokens;
    const uint32_t num_active = std::min(shape.num_experts, tokens * shape.experts_per_token);
    const uint32_t counts[] = {1, tokens, num_active, m.plan.options().max_context_rows, shape.draft.block_size};
    const uint32_t rows = counts[static_cast<size_t>(trip_count(first.kind))];
    if (second.tile_first >= second.tile_end * rows) return false;
  }
  if (random.coin() && !m.tag_wait(first)) second.num_waits = 0, second.waits[0] = second.waits[1] = {kNoCounter, 0};
  insert(m, place->worker, place->index + 1, second);
  m.repair_counters();
  return true;
}
inline bool swap_workers(PlanMutator& m, Random& random) {
  const uint32_t a = random.below(m.lists.size()), b = random.below(m.lists.size());
  std::swap(m.lists[a], m.lists[b]);
  return a != b;
}
inline bool add_known_wait(PlanMutator& m, Random& random) {  // for something that its own worker has waited for before
  const Place place = pick(m, random);
  Task& task = at(m, place);
  if (task.num_waits == 2 || place.index == 0) return false;
  const Task& earlier = m.lists[place.worker][random.below(place.index)];
  if (!earlier.num_waits || m.tag_wait(earlier)) return false;
  task.waits[task.num_waits++] = earlier.waits[random.below(earlier.num_waits)];
  return true;
}
inline bool renumber_counters(PlanMutator& m, Random& random) {
  const uint32_t a = random.below(m.counters.size()), b = random.below(m.counters.size());
  std::swap(m.counters[a], m.counters[b]);
  const auto rename = [&](uint32_t& counter) { counter = counter == a ? b : counter == b ? a : counter; };
  rename(m.gate_counter);
  for (auto& list : m.lists)
    for (Task& task : list) {
      rename(task.signal_counter);
      for (Wait& wait : task.waits) rename(wait.counter);
    }
  return a != b;
}
inline bool pad_buffer(PlanMutator& m, Random& random) {
  BufferInfo& info = m.buffers[random.below(m.buffers.size())];
  info.bytes += 64;
  if (info.space != BufferInfo::Space::arena) return true;
  info.offset = m.arena_bytes;
  m.arena_bytes += (info.bytes + 63) / 64 * 64;
  return true;
}
// A phase's task goes next to another one of its phase. Not what reads tagged words: such a task of the producer's
// worker orders for all others what came before the producer.
inline bool move_to_free_worker(PlanMutator& m, Random& random) {
  const Place from = pick(m, random);
  const Task task = at(m, from);
  if (task.signal_counter == m.gate_counter || from.index == 0 || m.tag_wait(task)) return false;
  for (uint32_t w = 0; w < m.lists.size(); ++w)
    for (uint32_t i = 0; i < m.lists[w].size(); ++i)
      if (w != from.worker && m.lists[w][i].signal_counter == task.signal_counter) {
        insert(m, w, i + 1, task);
        take(m, from);
        return true;
      }
  return false;
}

struct NamedMutation {
  const char* name;
  Mutation apply;
};
inline const NamedMutation kHarmful[] = {
    {"drop_signal", drop_signal},         {"redirect_signal", redirect_signal}, {"drop_wait", drop_wait},
    {"lower_wait", lower_wait},           {"swap_shares_and_lower_wait", swap_shares_and_lower_wait},
    {"raise_wait", raise_wait},           {"redirect_wait", redirect_wait},
    {"swap_tasks", swap_tasks},           {"swap_work", swap_work},             {"move_task", move_task},
    {"duplicate_task", duplicate_task},   {"duplicate_in_place", duplicate_in_place},
    {"remove_task", remove_task},         {"shrink_buffer", shrink_buffer},     {"alias_buffers", alias_buffers},
    {"move_buffer", move_buffer},         {"tile_range", tile_range},           {"tile_range_pair", tile_range_pair},
    {"stride", stride},                   {"change_buffers", change_buffers},
    {"read_before_write", read_before_write},
    {"late_wait", late_wait},             {"drop_gate_wait", drop_gate_wait},   {"early_gate", early_gate},
    {"other_gate", other_gate},           {"counter_total", counter_total},     {"change_kind", change_kind},
    {"change_layer", change_layer},       {"change_flags", change_flags}};
inline const NamedMutation kHarmfulToDrafts[] = {{"drop_capture", drop_capture},
                                                 {"swap_draft_sample_and_embed", swap_draft_sample_and_embed},
                                                 {"accept_before_lm_head", accept_before_lm_head},
                                                 {"context_kv_after_attention", context_kv_after_attention},
                                                 {"context_after_capture", context_after_capture},
                                                 {"swap_draft_layers", swap_draft_layers},
                                                 {"wrong_draft_layer", wrong_draft_layer},
                                                 {"shrink_block", shrink_block},
                                                 {"split_context_kv", split_context_kv}};
inline const NamedMutation kHarmless[] = {{"split_task", split_task},
                                   {"swap_workers", swap_workers},
                                   {"add_known_wait", add_known_wait},
                                   {"renumber_counters", renumber_counters},
                                   {"pad_buffer", pad_buffer},
                                   {"move_to_free_worker", move_to_free_worker}};

}  // namespace plan_mutations
