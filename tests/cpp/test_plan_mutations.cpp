// Corrupts sound plans in many ways. Plan::verify() must refuse every plan that a brute-force machine (plan_oracle.h)
// can make go wrong, and accept every plan that was changed in a way that keeps its meaning.
#include "check.h"
#include "plan_oracle_run.h"
#include "plan_tag_mutations.h"
#include "test_configs.h"

#include <cstdlib>
#include <map>
#include <type_traits>
#include <utility>

using namespace mimo_rt;
using namespace plan_mutations;

namespace {

struct Sound {
  std::string name;
  Plan plan;
  std::vector<plan_oracle::Scenario> scenarios;
};

/// gpu_: with all options of the CUDA engine; one without a draft has rounds of one token.
enum class PlanKind { plain, step_with_draft, round, round_without_draft, gpu_step, gpu_round, gpu_round_without_draft };

std::vector<plan_oracle::Scenario> scenarios_of(PlanKind kind, uint32_t n) {
  if (kind == PlanKind::gpu_round_without_draft) return {{{1, 1}, 2}, {{1, 1}, 3}};
  if (kind == PlanKind::round_without_draft) return {{{n, n - 1}, 2}, {{n, 1}, 3}, {{1, n}, 7}};
  if (kind == PlanKind::plain || kind == PlanKind::gpu_step) return {{{n, n - 1}, 2}, {{n, n}, 3}, {{1, n}, 7}};
  if (kind == PlanKind::step_with_draft)
    return {{{n, n - 1}, 2, 0, {2, n}}, {{1, n}, 3, 0, {n, 1}}, {{n, n}, 7, 0, {0, n}}};
  return {{{n, n - 1}, 2, 0, {2, 3}}, {{n, 1}, 3, 0, {1, 2}, {true, false}}, {{1, n}, 7, 0, {0, 3}, {false, true}}};
}

struct Wanted {
  uint32_t num_workers;
  PlanKind kind;
  bool is_fused;
};

PlanOptions options_of(const Wanted& wanted) {
  const auto [num_workers, kind, is_fused] = wanted;
  const bool is_gpu = kind >= PlanKind::gpu_step;
  PlanOptions options = is_gpu ? cuda_plan_options() : PlanOptions{};
  options.num_workers = num_workers;
  options.max_tokens = num_workers == 3 ? 4 : 3;
  if (kind == PlanKind::gpu_round_without_draft) options.max_tokens = 1;
  options.max_logit_rows = options.max_tokens;
  if (!is_gpu) options.fuse_norm = is_fused ? PlanOptions::FuseNorm::yes : PlanOptions::FuseNorm::no;
  options.is_round = kind != PlanKind::plain && kind != PlanKind::step_with_draft && kind != PlanKind::gpu_step;
  const bool has_draft = kind == PlanKind::step_with_draft || kind == PlanKind::round || kind == PlanKind::gpu_round;
  options.max_context_rows = has_draft ? options.max_tokens : 0;
  return options;
}

Sound make_sound(const test_configs::NamedConfig& model, const Wanted& wanted) {
  const PlanOptions options = options_of(wanted);
  const DraftConfig draft = test_configs::tiny_draft(model.config, options.max_tokens);
  const char* kind_names[] = {"", " with draft", " round", " round without draft", " GPU", " GPU round",
                              " GPU round without draft"};
  const bool is_fused = options.fuse_norm == PlanOptions::FuseNorm::yes;
  Sound sound{model.name + kind_names[static_cast<int>(wanted.kind)] + " w" + std::to_string(wanted.num_workers) +
                  (is_fused ? " fused" : ""),
              Plan::build(model.config, options, options.max_context_rows ? &draft : nullptr),
              scenarios_of(wanted.kind, options.max_tokens)};
  for (auto& scenario : sound.scenarios)
    scenario.expected = plan_oracle::expected_outputs(sound.plan, is_fused, scenario);
  return sound;
}

/// Plans of all tiny models: steps and rounds, with and without a draft, as CPUs and as the GPU runs them.
std::vector<Sound> sound_plans() {
  std::vector<Sound> plans;
  uint64_t seed = 1;
  for (const auto& model : test_configs::tiny_configs())
    for (const auto& [num_workers, kind] : std::initializer_list<std::pair<uint32_t, PlanKind>>{
             {2, PlanKind::plain}, {3, PlanKind::plain}, {5, PlanKind::plain}, {3, PlanKind::step_with_draft},
             {3, PlanKind::round}, {3, PlanKind::round_without_draft}, {3, PlanKind::gpu_step},
             {13, PlanKind::gpu_step}, {7, PlanKind::gpu_round}, {13, PlanKind::gpu_round_without_draft}})
      plans.push_back(make_sound(model, {num_workers, kind, (seed++ / 2) % 2 != 0}));
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
  return rounds ? static_cast<uint32_t>(std::atoi(rounds)) : 6;
}

}  // namespace

TEST_CASE("among the GPU's rounds are some with the routes by tag edges and with shares of a kv head's keys") {
  const Plan plan = make_sound({"tiny", test_configs::tiny()}, {7, PlanKind::gpu_round, false}).plan;
  CHECK_EQ(std::ranges::count(plan.counters(), CounterInfo::Kind::tag, &CounterInfo::kind), 2);
  const auto is_split = [&](const Task& task) {
    return task.kind == TaskKind::attention && task.tile_end > plan.shape().layers[task.layer_idx].num_kv_heads;
  };
  CHECK(std::ranges::any_of(plan.tasks(0), is_split));
}

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
  std::vector<NamedMutation> harmful(std::begin(kHarmful), std::end(kHarmful));
  harmful.insert(harmful.end(), std::begin(kHarmfulToDrafts), std::end(kHarmfulToDrafts));
  harmful.insert(harmful.end(), std::begin(kHarmfulToTags), std::end(kHarmfulToTags));
  std::map<std::string, Count> counts;
  uint64_t seed = 0;
  for (const Sound& sound : sound_plans())
    for (const NamedMutation& mutation : harmful)
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
  CHECK_EQ(counts.size(), harmful.size());
  CHECK(total >= 6000);
}

TEST_CASE("a plan changed without harm is accepted") {
  uint64_t seed = 1u << 20;
  std::vector<NamedMutation> harmless(std::begin(kHarmless), std::end(kHarmless));
  harmless.insert(harmless.end(), std::begin(kHarmlessToTags), std::end(kHarmlessToTags));
  std::map<std::string, uint32_t> counts;
  for (const Sound& sound : sound_plans())
    for (const NamedMutation& mutation : harmless)
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
  CHECK_EQ(counts.size(), harmless.size());
}

TEST_CASE("no plan is empty, not even one that was moved from") {
  static_assert(!std::is_default_constructible_v<Plan>);
  Plan plan = Plan::build(test_configs::tiny(), PlanOptions{});
  const Plan moved = std::move(plan);
  CHECK_EQ(plan.dump(), moved.dump());
  CHECK_EQ(plan.verify().num_tasks, moved.num_tasks());
}

// The last of them sets up the next epoch before all have signalled.
TEST_CASE("the gate is signalled by those who draw the tokens, and nobody else") {
  PlanOptions options = cuda_plan_options();
  options.num_workers = 3, options.max_tokens = options.max_logit_rows = 4;
  PlanMutator m(Plan::build(test_configs::tiny(), options));
  CHECK(verdict(m.finish()) == Verdict::accepted);  // control
  Task& head = *std::ranges::find(m.lists[1], TaskKind::lm_head, &Task::kind);
  head.signal_counter = m.lists[1].back().signal_counter;
  m.repair_counters();
  CHECK_THROWS(plan_invalid, "worker 1, lm_head signals the gate: expected only sample or accept", m.finish().verify());
}

TEST_CASE("a tag edge brings a route of at most 256 pairs, as many as its readers have memory for") {
  PlanOptions options = cuda_plan_options();
  options.num_workers = 1, options.max_tokens = 128;
  const auto with_tags = [&] {
    PlanMutator m(Plan::build(test_configs::tiny(), options));
    uint32_t route = kNoCounter;
    for (Task& task : m.lists[0]) {
      if (task.kind == TaskKind::select_experts) {
        route = task.signal_counter;
        m.counters[route].kind = CounterInfo::Kind::tag, m.counters[route].buffer = kRoute;
      }
      if (task.input2 == kRoute && !m.tag_wait(task)) task.waits[task.num_waits++] = {route, 1};
    }
    return m.finish();
  };
  CHECK(verdict(with_tags()) == Verdict::accepted);
  ++options.max_tokens;
  CHECK_THROWS(plan_invalid, "expected a route of at most 256 (token, expert) pairs, got 258", with_tags().verify());
  CHECK(verdict(Plan::build(test_configs::tiny(), options)) == Verdict::accepted);  // by counters
}

CHECK_MAIN()
