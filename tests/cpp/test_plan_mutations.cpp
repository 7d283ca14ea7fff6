// Corrupts sound plans in many ways. Plan::verify() must refuse every plan that a brute-force machine (plan_oracle.h)
// can make go wrong, and accept every plan that was changed in a way that keeps its meaning.
#include "check.h"
#include "plan_mutator.h"
#include "plan_oracle_run.h"
#include "test_configs.h"

#include <cstdlib>
#include <map>
#include <random>

using namespace mimo_rt;

namespace {

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
Place pick(const PlanMutator& m, Random& random) {
  return *pick(m, random, [](const Task&) { return true; });
}
Task& at(PlanMutator& m, Place place) { return m.lists[place.worker][place.index]; }
bool has_wait(const Task& task) { return task.num_waits > 0; }
bool has_counted_wait(const Task& task) { return task.num_waits && task.waits[task.num_waits - 1].value > 0; }

void insert(PlanMutator& m, uint32_t worker, uint32_t index, const Task& task) {
  m.lists[worker].insert(m.lists[worker].begin() + index, task);
}
Task take(PlanMutator& m, Place place) {
  const Task task = at(m, place);
  m.lists[place.worker].erase(m.lists[place.worker].begin() + place.index);
  return task;
}

/// Returns false when the plan offers no place for it.
using Mutation = bool (*)(PlanMutator&, Random&);

bool drop_signal(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, [](const Task& t) { return t.signal_counter != kNoCounter; });
  at(m, *place).signal_counter = kNoCounter;
  if (random.coin()) m.repair_counters();
  return true;
}
bool redirect_signal(PlanMutator& m, Random& random) {
  at(m, pick(m, random)).signal_counter = random.below(m.counters.size());
  if (random.coin()) m.repair_counters();
  return true;
}
bool drop_wait(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, has_wait);
  Task& task = at(m, *place);
  const uint32_t which = random.below(task.num_waits);
  if (which == 0) task.waits[0] = task.waits[1];
  task.waits[--task.num_waits] = {kNoCounter, 0};
  return true;
}
bool lower_wait(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, has_counted_wait);
  if (!place) return false;
  Wait& wait = at(m, *place).waits[at(m, *place).num_waits - 1];
  wait.value -= 1 + random.below(wait.value);
  return true;
}
bool swap_shares_and_lower_wait(PlanMutator& m, Random& random) {  // what is waited for may not be what is needed
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
bool raise_wait(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, has_wait);
  at(m, *place).waits[random.below(at(m, *place).num_waits)].value += 1 + random.below(2);
  return true;
}
bool redirect_wait(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, has_wait);
  Wait& wait = at(m, *place).waits[random.below(at(m, *place).num_waits)];
  wait.counter = random.below(m.counters.size());
  wait.value = m.counters[wait.counter].total;
  return true;
}
bool swap_tasks(PlanMutator& m, Random& random) {
  const Place a = pick(m, random);
  std::vector<Task>& list = m.lists[a.worker];
  if (list.size() < 2) return false;
  const uint32_t b = random.coin() ? (a.index + 1) % static_cast<uint32_t>(list.size()) : random.below(list.size());
  std::swap(list[a.index], list[b]);
  return b != a.index;
}
bool swap_work(PlanMutator& m, Random& random) {  // only what they do, not what they wait for
  const Place a = pick(m, random), b = pick(m, random);
  Task &x = at(m, a), &y = at(m, b);
  std::swap(x, y);
  std::swap(x.num_waits, y.num_waits);
  std::swap(x.waits, y.waits);
  std::swap(x.signal_counter, y.signal_counter);
  return true;
}
bool move_task(PlanMutator& m, Random& random) {
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
bool duplicate_task(PlanMutator& m, Random& random) {
  const Task task = at(m, pick(m, random));
  const uint32_t worker = random.below(m.lists.size());
  insert(m, worker, random.below(m.lists[worker].size() + 1), task);
  if (random.coin()) m.repair_counters();
  return true;
}
bool duplicate_in_place(PlanMutator& m, Random& random) {
  const Place place = pick(m, random);
  insert(m, place.worker, place.index, at(m, place));
  m.repair_counters();
  return true;
}
bool remove_task(PlanMutator& m, Random& random) {
  take(m, pick(m, random));
  if (random.coin()) m.repair_counters();
  return true;
}
bool shrink_buffer(PlanMutator& m, Random& random) {
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
bool alias_buffers(PlanMutator& m, Random& random) {
  BufferInfo& a = m.buffers[random.below(m.buffers.size())];
  const BufferInfo& b = m.buffers[random.below(m.buffers.size())];
  const auto arena = BufferInfo::Space::arena;
  if (&a == &b || a.space != arena || b.space != arena || !a.bytes || !b.bytes) return false;
  a.offset = random.coin() ? b.offset : (b.offset + b.bytes - 1) / 64 * 64;
  m.arena_bytes += a.bytes;  // so that the end of the arena is not what refuses it
  return true;
}
bool move_buffer(PlanMutator& m, Random& random) {
  BufferInfo& info = m.buffers[random.below(m.buffers.size())];
  if (info.space != BufferInfo::Space::arena || !info.bytes) return false;
  info.offset = random.coin() ? m.arena_bytes : info.offset + 2 * (1 + random.below(31));
  return true;
}
bool tile_range(PlanMutator& m, Random& random) {
  Task& task = at(m, pick(m, random));
  uint32_t& field = random.coin() ? task.tile_first : task.tile_end;
  const uint32_t before = field;
  field = random.coin() ? before + 1 + random.below(3) : before - std::min(before, 1 + random.below(3));
  return field != before;
}
bool tile_range_pair(PlanMutator& m, Random& random) {  // a gap or an overlap with the next worker's range
  const auto place =
      pick(m, random, [](const Task& t) { return trip_count(t.kind) == TripCount::once && t.tile_end > 2; });
  if (!place) return false;
  Task& task = at(m, *place);
  if (random.coin()) task.tile_end -= 1;
  else task.tile_first += 1;
  return true;
}
bool stride(PlanMutator& m, Random& random) {
  Task& task = at(m, pick(m, random));
  const uint32_t before = task.tile_stride;
  task.tile_stride = random.coin() ? before + 1 : random.below(5);
  return task.tile_stride != before;
}
bool change_buffers(PlanMutator& m, Random& random) {
  Task& task = at(m, pick(m, random));
  uint16_t* const fields[] = {&task.input, &task.input2, &task.output, &task.output2};
  uint16_t& field = *fields[random.below(4)];
  const uint16_t before = field;
  field = static_cast<uint16_t>(random.below(m.buffers.size()));
  return field != before && before != kNoBuffer;
}
bool read_before_write(PlanMutator& m, Random& random) {  // a task runs ahead of its predecessor, and waits pass by
  const Place place = pick(m, random);
  if (place.index == 0) return false;
  std::vector<Task>& list = m.lists[place.worker];
  Task &early = list[place.index], &late = list[place.index - 1];
  std::swap(early.num_waits, late.num_waits);
  std::swap(early.waits, late.waits);
  std::swap(early, late);
  return true;
}
bool late_wait(PlanMutator& m, Random& random) {  // a wait slips to the next task
  const auto place = pick(m, random, has_counted_wait);
  if (!place || place->index + 1 == m.lists[place->worker].size()) return false;
  Task& task = at(m, *place);
  Task& next = m.lists[place->worker][place->index + 1];
  if (next.num_waits == 2) return false;
  next.waits[next.num_waits++] = task.waits[--task.num_waits];
  return true;
}
bool drop_gate_wait(PlanMutator& m, Random& random) {
  std::vector<Task>& list = m.lists[random.below(m.lists.size())];
  if (list.empty() || list[0].waits[0].counter != m.gate_counter) return false;
  list[0].waits[0] = list[0].waits[1];
  list[0].waits[1] = {kNoCounter, 0};
  --list[0].num_waits;
  return true;
}
bool early_gate(PlanMutator& m, Random& random) {
  const auto gate = pick(m, random, [&](const Task& t) { return t.signal_counter == m.gate_counter; });
  std::swap(at(m, *gate).signal_counter, at(m, pick(m, random)).signal_counter);
  if (random.coin()) m.repair_counters();
  return true;
}
bool other_gate(PlanMutator& m, Random& random) {
  const uint32_t before = m.gate_counter;
  m.gate_counter = random.below(m.counters.size());
  for (auto& list : m.lists)
    for (Task& task : list)
      for (Wait& wait : task.waits)
        if (wait.value == 0 && wait.counter == before) wait.counter = m.gate_counter;
  return m.gate_counter != before;
}
bool counter_total(PlanMutator& m, Random& random) {
  uint32_t& total = m.counters[random.below(m.counters.size())].total;
  total = random.coin() ? total + 1 : total - 1;
  return true;
}
bool change_kind(PlanMutator& m, Random& random) {
  Task& task = at(m, pick(m, random));
  const TaskKind before = task.kind;
  task.kind = static_cast<TaskKind>(random.below(kNumTaskKinds + 1));
  return task.kind != before;
}
bool change_layer(PlanMutator& m, Random& random) {
  Task& task = at(m, pick(m, random));
  const uint16_t before = task.layer_idx;
  task.layer_idx = random.below(5) ? static_cast<uint16_t>(random.below(m.plan.shape().layers.size() + 1)) : kNoLayer;
  if (random.coin() && before != kNoLayer && task.layer_idx != kNoLayer) {  // with the KV buffer to match
    if (task.kind == TaskKind::qkv_proj) task.output2 = static_cast<uint16_t>(kFirstKv + task.layer_idx);
    if (task.kind == TaskKind::attention) task.input2 = static_cast<uint16_t>(kFirstKv + task.layer_idx);
  }
  return task.layer_idx != before;
}
bool change_flags(PlanMutator& m, Random& random) {
  Task& task = at(m, pick(m, random));
  task.flags = static_cast<uint16_t>(task.flags ^ (1u << random.below(3)));
  if (random.coin() && task.input <= kH) task.input = task.flags & kFusedNorm ? kX : kH;
  return true;
}

// Changes that keep the meaning.
bool split_task(PlanMutator& m, Random& random) {
  const auto place = pick(m, random, [](const Task& t) { return t.signal_counter != 0; });
  Task second = at(m, *place);
  Task& first = at(m, *place);
  if (first.kind == TaskKind::select_experts || first.kind == TaskKind::sample) return false;
  if (trip_count(first.kind) == TripCount::once) {
    if (first.tile_end - first.tile_first < 2) return false;
    first.tile_end = second.tile_first = first.tile_first + 1 + random.below(first.tile_end - first.tile_first - 1);
  } else {
    second.tile_first += first.tile_stride;
    first.tile_stride = second.tile_stride = 2 * first.tile_stride;
    const PlanShape& shape = m.plan.shape();
    const uint32_t tokens = m.plan.options().max_tokens;
    const uint32_t rows = trip_count(first.kind) == TripCount::per_token
                              ? tokens
                              : std::min(shape.num_experts, tokens * shape.experts_per_token);
    if (second.tile_first >= second.tile_end * rows) return false;
  }
  if (random.coin()) second.num_waits = 0, second.waits[0] = second.waits[1] = {kNoCounter, 0};
  insert(m, place->worker, place->index + 1, second);
  m.repair_counters();
  return true;
}
bool swap_workers(PlanMutator& m, Random& random) {
  const uint32_t a = random.below(m.lists.size()), b = random.below(m.lists.size());
  std::swap(m.lists[a], m.lists[b]);
  return a != b;
}
bool add_known_wait(PlanMutator& m, Random& random) {  // for something that its own worker has waited for before
  const Place place = pick(m, random);
  Task& task = at(m, place);
  if (task.num_waits == 2 || place.index == 0) return false;
  const Task& earlier = m.lists[place.worker][random.below(place.index)];
  if (!earlier.num_waits) return false;
  task.waits[task.num_waits++] = earlier.waits[random.below(earlier.num_waits)];
  return true;
}
bool renumber_counters(PlanMutator& m, Random& random) {
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
bool pad_buffer(PlanMutator& m, Random& random) {
  BufferInfo& info = m.buffers[random.below(m.buffers.size())];
  info.bytes += 64;
  if (info.space != BufferInfo::Space::arena) return true;
  info.offset = m.arena_bytes;
  m.arena_bytes += (info.bytes + 63) / 64 * 64;
  return true;
}
bool move_to_free_worker(PlanMutator& m, Random& random) {  // a phase's task goes next to another one of its phase
  const Place from = pick(m, random);
  const Task task = at(m, from);
  if (task.signal_counter == m.gate_counter || from.index == 0) return false;
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
const NamedMutation kHarmful[] = {
    {"drop_signal", drop_signal},         {"redirect_signal", redirect_signal}, {"drop_wait", drop_wait},
    {"lower_wait", lower_wait},           {"swap_shares_and_lower_wait", swap_shares_and_lower_wait},
    {"raise_wait", raise_wait},           {"redirect_wait", redirect_wait},
    {"swap_tasks", swap_tasks},           {"swap_work", swap_work},             {"move_task", move_task},
    {"duplicate_task", duplicate_task},   {"duplicate_in_place", duplicate_in_place},
    {"remove_task", remove_task},         {"shrink_buffer", shrink_buffer},     {"alias_buffers", alias_buffers},
    {"move_buffer", move_buffer},         {"tile_range", tile_range},           {"tile_range_pair", tile_range_pair},
    {"stride", stride},                   {"change_buffers", change_buffers},   {"read_before_write", read_before_write},
    {"late_wait", late_wait},             {"drop_gate_wait", drop_gate_wait},   {"early_gate", early_gate},
    {"other_gate", other_gate},           {"counter_total", counter_total},     {"change_kind", change_kind},
    {"change_layer", change_layer},       {"change_flags", change_flags}};
const NamedMutation kHarmless[] = {{"split_task", split_task},
                                   {"swap_workers", swap_workers},
                                   {"add_known_wait", add_known_wait},
                                   {"renumber_counters", renumber_counters},
                                   {"pad_buffer", pad_buffer},
                                   {"move_to_free_worker", move_to_free_worker}};

struct Sound {
  std::string name;
  Plan plan;
  std::vector<plan_oracle::Scenario> scenarios;
};

std::vector<Sound> sound_plans() {
  std::vector<Sound> plans;
  uint64_t seed = 1;
  for (const auto& [name, config] : test_configs::tiny_configs())
    for (uint32_t num_workers : {2u, 3u, 5u}) {
      const bool fused = (seed++ / 2) % 2;
      PlanOptions options;
      options.num_workers = num_workers;
      options.max_tokens = options.max_logit_rows = num_workers == 3 ? 4 : 3;
      options.fuse_norm = fused ? PlanOptions::FuseNorm::yes : PlanOptions::FuseNorm::no;
      const uint32_t n = options.max_tokens;
      Sound sound{name + " w" + std::to_string(num_workers) + (fused ? " fused" : ""), Plan::build(config, options),
                  {{{n, n - 1}, 2}, {{n, n}, 3}, {{1, n}, 7}}};
      for (auto& scenario : sound.scenarios)
        scenario.expected = plan_oracle::expected_outputs(sound.plan, fused, scenario);
      plans.push_back(std::move(sound));
    }
  return plans;
}

enum class Verdict { accepted, refused };

Verdict verdict(const Plan& plan, std::string* why = nullptr) {
  try {
    plan.verify();
    return Verdict::accepted;
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::plan_invalid);
    if (why) *why = error.what();
    return Verdict::refused;
  }
}

/// How often each mutation is tried per plan. MIMO_RT_TEST_ROUNDS makes a longer run.
uint32_t num_rounds() {
  const char* rounds = std::getenv("MIMO_RT_TEST_ROUNDS");
  return rounds ? static_cast<uint32_t>(std::atoi(rounds)) : 10;
}

}  // namespace

TEST_CASE("the oracle and the verifier accept what the planner makes") {
  for (const Sound& sound : sound_plans()) {
    CHECK_EQ(plan_oracle::find_fault(sound.plan, sound.scenarios), std::string());
    std::string why;
    CHECK(verdict(sound.plan, &why) == Verdict::accepted);
    CHECK_EQ(why, std::string());
  }
}

// Worker 1 normalises the row that worker 0 embeds. A run in which every worker goes as far as it can, one after the
// other, sees worker 0 signal first; in another run workers 1 and 2 give the two signals before worker 0 has begun.
TEST_CASE("a wait for fewer than all signals proves nothing about any one signaller") {
  PlanOptions options;
  options.num_workers = options.max_tokens = options.max_logit_rows = 3;
  options.fuse_norm = PlanOptions::FuseNorm::no;
  const Plan plan = Plan::build(test_configs::tiny(), options);
  std::vector<plan_oracle::Scenario> scenarios{{{3, 2}, 2}, {{3, 3}, 3}};
  for (auto& scenario : scenarios) scenario.expected = plan_oracle::expected_outputs(plan, false, scenario);

  PlanMutator m(plan);
  std::swap(m.lists[0][0].tile_first, m.lists[1][0].tile_first);
  const Plan swapped = m.finish();
  std::string why;
  CHECK(verdict(swapped, &why) == Verdict::accepted);
  CHECK_EQ(why, std::string());
  CHECK_EQ(plan_oracle::find_fault(swapped, scenarios), std::string());

  Task& norm = m.lists[1][1];
  CHECK(norm.kind == TaskKind::rms_norm && norm.num_waits == 1);
  CHECK_EQ(norm.waits[0].value, 3u);
  norm.waits[0].value = 2;
  const Plan lowered = m.finish();
  CHECK(!plan_oracle::find_fault(lowered, scenarios).empty());
  CHECK_THROWS(plan_invalid,
               "(rms_norm, layer 0) reads 'x' rows 1 step 3, cols [0, 48) but may start before its writer",
               lowered.verify());
}

// The rule for partial waits still proves what it can: without the first of a worker's two signals there is no second.
TEST_CASE("a wait that cannot hold without a signal proves it") {
  PlanOptions options;
  options.num_workers = 2, options.max_tokens = options.max_logit_rows = 4;
  options.fuse_norm = PlanOptions::FuseNorm::no;
  PlanMutator m(Plan::build(test_configs::tiny(), options));
  for (auto& list : m.lists) {  // each embeds its two rows in two tasks
    Task second = list[0];
    second.num_waits = 0, second.waits[0] = {kNoCounter, 0};
    second.tile_first += 2, second.tile_stride = 4, list[0].tile_stride = 4;
    list.insert(list.begin() + 1, second);
  }
  m.repair_counters();
  // Worker 0 keeps the norm of row 2. Worker 1 does row 0 after 3 of the 4 signals, and its own rows after all.
  CHECK(m.lists[0][2].kind == TaskKind::rms_norm && m.lists[1][2].kind == TaskKind::rms_norm);
  m.lists[0][2].tile_first = 2, m.lists[0][2].tile_stride = 4;
  Task early = m.lists[1][2];
  CHECK_EQ(early.waits[0].value, 4u);
  early.tile_first = 0, early.tile_stride = 4, early.waits[0].value = 3;
  m.lists[1].insert(m.lists[1].begin() + 2, early);
  m.repair_counters();
  CHECK(verdict(m.finish()) == Verdict::accepted);
  m.lists[1][2].waits[0].value = 2;  // both may be worker 1's own
  CHECK_THROWS(plan_invalid, "may start before its writer", m.finish().verify());
}

TEST_CASE("buffers are measured without wrapping round") {
  PlanOptions options;
  options.num_workers = options.max_tokens = 2;
  const Plan plan = Plan::build(test_configs::tiny(), options);
  const auto with = [&](const std::string& name, uint32_t rows, uint32_t cols, uint64_t bytes) {
    PlanMutator m(plan);
    for (BufferInfo& info : m.buffers)
      if (info.name == name) info.rows = rows, info.cols = cols, info.bytes = bytes;
    return m.finish();
  };
  const uint32_t big = 3037000500;  // the least number whose square is over 2^63
  const uint64_t wrapped = uint64_t{big} * big * 2;
  CHECK_THROWS(plan_invalid, "'logits' is too large", with("logits", 1u << 31, 1u << 31, 0).verify());
  CHECK_THROWS(plan_invalid, "'kv.0' is too large", with("kv.0", big, big, wrapped).verify());
  CHECK_THROWS(plan_invalid, "'tokens' rows: expected at least 2, got 0", with("tokens", 0, 0, 0).verify());
  CHECK_THROWS(plan_invalid, "'tokens' rows: expected at least 2, got 1", with("tokens", 1, 1, 8).verify());
  CHECK_THROWS(plan_invalid, "'tokens' cols: expected at least 1, got 0", with("tokens", 2, 0, 8).verify());
  CHECK(verdict(with("tokens", 3, 1, 12)) == Verdict::accepted);
}

TEST_CASE("no corrupted plan is accepted") {
  struct Count {
    uint32_t tried = 0, refused = 0, proven_harmless = 0, proven_harmful = 0, refused_but_harmless = 0;
  };
  std::map<std::string, Count> counts;
  uint64_t seed = 0;
  for (const Sound& sound : sound_plans())
    for (const NamedMutation& mutation : kHarmful)
      for (uint32_t round = 0; round < num_rounds(); ++round) {
        Random random(++seed);
        PlanMutator m(sound.plan);
        if (!mutation.apply(m, random)) continue;
        const Plan mutant = m.finish();
        if (mutant.hash() == sound.plan.hash()) continue;
        Count& count = counts[mutation.name];
        ++count.tried;
        const bool refused = verdict(mutant) == Verdict::refused;
        count.refused += refused;
        if (refused && round % 5) continue;  // of the refused ones a part is looked at, to know that they matter
        const std::string fault =
            plan_oracle::find_fault(mutant, refused ? std::vector{sound.scenarios[0]} : sound.scenarios);
        if (refused) ++(fault.empty() ? count.refused_but_harmless : count.proven_harmful);
        else if (fault.empty()) ++count.proven_harmless;
        else
          check::report(__FILE__, __LINE__, std::string(mutation.name) + " on " + sound.name + " seed " +
                                                std::to_string(seed) + " accepted, but: " + fault);
      }
  uint32_t total = 0;
  std::printf("%-26s %6s %8s %17s %22s %24s\n", "mutation", "tried", "refused", "accepted=harmless",
              "refused: seen harmful", "refused: none seen");
  for (const auto& [name, count] : counts) {
    std::printf("%-26s %6u %8u %17u %22u %24u\n", name.c_str(), count.tried, count.refused, count.proven_harmless,
                count.proven_harmful, count.refused_but_harmless);
    CHECK(count.proven_harmful > 0);  // each kind does real harm
    total += count.tried;
  }
  CHECK_EQ(counts.size(), std::size(kHarmful));
  CHECK(total >= 3000);
}

TEST_CASE("a plan changed without harm is accepted") {
  uint64_t seed = 1u << 20;
  std::map<std::string, uint32_t> counts;
  for (const Sound& sound : sound_plans())
    for (const NamedMutation& mutation : kHarmless)
      for (uint32_t round = 0; round < num_rounds(); ++round) {
        Random random(++seed);
        PlanMutator m(sound.plan);
        if (!mutation.apply(m, random)) continue;
        const Plan mutant = m.finish();
        std::string why;
        if (verdict(mutant, &why) == Verdict::refused)
          check::report(__FILE__, __LINE__, std::string(mutation.name) + " on " + sound.name + " seed " +
                                                std::to_string(seed) + " refused: " + why);
        if (round == 0)
          CHECK_EQ(plan_oracle::find_fault(mutant, sound.scenarios), std::string());
        ++counts[mutation.name];
      }
  for (const auto& [name, count] : counts) std::printf("%-20s %6u accepted\n", name.c_str(), count);
  CHECK_EQ(counts.size(), std::size(kHarmless));
}

CHECK_MAIN()
