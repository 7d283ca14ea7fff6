// Who takes part while other processes want cores: the decisions, and executors whose teams change while they run.
#include "cpu/dispatch.h"
#include "cpu/executor.h"
#include "cpu/plan_states.h"
#include "cpu/team.h"
#include "cpu/worker_pool.h"
#include "draft_run.h"
#include "fork_check.h"

#include "check.h"

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <set>
#include <thread>

using namespace mimo_rt;
using namespace mimo_rt::cpu;
using namespace fixture;

namespace {

using Shared = std::vector<uint8_t>;

std::vector<uint32_t> members(const Team& team) { return {team.members().begin(), team.members().end()}; }

/// Reviews a team as an executor does.
struct Drill {
  explicit Drill(uint32_t num_workers) : team(num_workers) {}

  /// Enough steps of `step_ms` for a review.
  void run(double step_ms, const Shared& is_shared, const void* kind = "decode", uint32_t num_rows = 1) {
    const auto step_ns = static_cast<int64_t>(1e6 * step_ms);
    for (bool is_due = false; !is_due;) is_due = team.observe({kind, num_rows, 1, step_ns, now_ns += step_ns});
    team.review(is_shared);
  }
  void wait(int64_t ns) { now_ns += ns; }

  Team team;
  int64_t now_ns = 1'000'000'000'000;
};

/// The team of these workers and no others, however long it runs.
void choose(Team& team, const Shared& is_shared) {
  team.observe({"test", 1, Team::kReviewSteps, Team::kReviewNs, 1});
  team.review(is_shared);
}

}  // namespace

TEST_CASE("a team leaves a shared core to others and soon tries again") {
  Drill drill(4);
  drill.run(5, {0, 0, 0, 0});
  CHECK(members(drill.team) == (std::vector<uint32_t>{0, 1, 2, 3}));  // control: nobody shares
  drill.run(25, {0, 1, 0, 0});
  CHECK(members(drill.team) == (std::vector<uint32_t>{0, 2, 3}));
  CHECK(!drill.team.is_whole());
  drill.run(7, {0, 0, 0});
  CHECK_EQ(drill.team.size(), 3u);
  drill.wait(Team::kFirstPatienceNs);
  drill.run(7, {0, 0, 0});
  CHECK(drill.team.is_whole());
}

TEST_CASE("a team shrinks by all who share, by half when everybody does, and never to nobody") {
  Drill drill(6);
  drill.run(50, {1, 0, 1, 0, 0, 1});
  CHECK(members(drill.team) == (std::vector<uint32_t>{1, 3, 4}));
  drill.run(40, {1, 1, 1});
  CHECK(members(drill.team) == (std::vector<uint32_t>{1}));
  drill.run(30, {1});
  CHECK_EQ(drill.team.size(), 1u);
}

TEST_CASE("a size that turns out slower is left again, and for a while not tried again") {
  Drill drill(2);
  drill.run(10, {0, 1});
  CHECK_EQ(drill.team.size(), 1u);
  drill.run(16, {0});  // slower than two that share
  CHECK(drill.team.is_whole());
  drill.run(10, {0, 1});
  CHECK(drill.team.is_whole());
  drill.run(50, {0, 1});  // now it would be faster
  CHECK_EQ(drill.team.size(), 1u);
  drill.run(16, {0});
  CHECK_EQ(drill.team.size(), 1u);  // control: two took 50

  Drill later(2);
  later.run(10, {0, 1});
  later.run(16, {0});
  later.wait(Team::kRecentNs);
  later.run(10, {0, 1});
  CHECK_EQ(later.team.size(), 1u);
}

TEST_CASE("a small team tries the whole one now and then, less and less often while that is in vain") {
  Drill drill(2);
  int64_t patience_ns = Team::kFirstPatienceNs;
  drill.run(50, {0, 1});
  for (int i = 0; i < 8; ++i) {
    const int64_t begin_ns = drill.now_ns;
    while (!drill.team.is_whole()) drill.run(10, {0});
    const int64_t waited_ns = drill.now_ns - begin_ns;
    CHECK(waited_ns >= patience_ns && waited_ns < patience_ns + 2 * Team::kReviewNs);
    drill.run(50, {0, 1});
    CHECK_EQ(drill.team.size(), 1u);
    patience_ns = std::min(2 * patience_ns, Team::kMaxPatienceNs);
  }
  while (!drill.team.is_whole()) drill.run(10, {0});
  for (uint32_t i = 0; i < Team::kVainReviews; ++i) drill.run(6, {0, 0});
  drill.run(500, {0, 1});  // it was good for a while: patience is short again
  const int64_t begin_ns = drill.now_ns;
  while (!drill.team.is_whole()) drill.run(10, {0});
  CHECK(drill.now_ns - begin_ns < Team::kFirstPatienceNs + 2 * Team::kReviewNs);
}

TEST_CASE("one bad moment does not make a team small for long") {
  Drill drill(2);
  for (int i = 0; i < 9; ++i) drill.run(5, {0, 0});
  drill.run(10, {0, 1});
  CHECK_EQ(drill.team.size(), 1u);
  drill.run(8, {0});
  CHECK(drill.team.is_whole());  // 7.5 on average
  Drill bad(2);
  bad.run(10, {0, 1});
  bad.run(8, {0});
  CHECK_EQ(bad.team.size(), 1u);  // control: it never was better
}

TEST_CASE("times of another kind of step are not compared") {
  Drill drill(2);
  drill.run(10, {0, 1});
  CHECK_EQ(drill.team.size(), 1u);
  drill.run(30, {0}, "prefill");
  CHECK_EQ(drill.team.size(), 1u);
  drill.run(30, {0}, "decode", 8);
  CHECK_EQ(drill.team.size(), 1u);
  Drill same(2);
  same.run(10, {0, 1});
  same.run(30, {0});
  CHECK(same.team.is_whole());  // control
  same.team.reset();
  CHECK(same.team.is_whole());
}

TEST_CASE("kinds that take turns are watched each for itself") {
  Drill drill(2);
  bool is_due = false;
  for (int i = 0; !is_due; ++i) {
    CHECK(i < 100);
    drill.now_ns += 30'000'000;
    CHECK(!drill.team.observe({"prefill", 1, 1, 1'000'000, drill.now_ns}));
    is_due = drill.team.observe({"decode", 1, 1, 10'000'000, drill.now_ns});
  }
  drill.team.review(Shared{0, 1});
  CHECK_EQ(drill.team.size(), 1u);
  drill.run(5, {0}, "prefill");  // nothing is known of it at the other size
  CHECK_EQ(drill.team.size(), 1u);
  drill.run(20, {0});
  CHECK(drill.team.is_whole());  // 10 before
}

TEST_CASE("only the team runs a job, each member once, and the others are back when they are wanted") {
  class Count final : public WorkerPool::Job {
   public:
    void work(uint32_t member_idx) noexcept override {
      ++counts[member_idx];
      threads[member_idx] = std::this_thread::get_id();
    }
    std::array<uint32_t, 4> counts{};  // plain: handed over
    std::array<std::thread::id, 4> threads{};
  };
  for (const uint32_t park_after_us : {0u, 1'000'000u}) {
    WorkerPool pool({.num_workers = 4, .pin_workers = false, .park_after_us = park_after_us});
    Count all;
    pool.run(all);
    CHECK(all.counts == (std::array<uint32_t, 4>{1, 1, 1, 1}));
    const std::vector<std::vector<uint32_t>> teams = {{1, 3}, {2}, {0, 1, 2, 3}, {3}, {0, 2, 3}};
    uint32_t num_wrong = 0;
    for (uint32_t i = 0; i < 1000; ++i) {
      const std::vector<uint32_t>& team = teams[i % teams.size()];
      pool.set_team(team);
      CHECK_EQ(pool.team_size(), team.size());
      Count some;
      pool.run(some);
      for (uint32_t m = 0; m < 4; ++m) {
        const bool takes_part = m < team.size();
        num_wrong += some.counts[m] != (takes_part ? 1u : 0u);
        if (takes_part) num_wrong += some.threads[m] != all.threads[team[m]];
      }
    }
    CHECK_EQ(num_wrong, 0u);
  }
}

TEST_CASE("steps of any team give the same bits, and teams may change between steps") {
  const ModelConfig config = small_quantised();
  const Weights weights = Weights::synthetic(config, 11);
  const std::vector<int32_t> tokens = random_tokens(config, 60, 3);
  PlanOptions fused = plan_options(3, 5, 5), measured = fused;
  measured.costs.matrix_ns[0].fill(1.0);  // edges cost nothing: norms of three workers stand alone, one would fuse its own
  measured.costs.norm_ns = 1e6;
  std::vector<float> expected;
  for (const auto& [backend, options] :
       {std::pair{runnable_cpu_backends().front(), fused}, {runnable_cpu_backends().front(), measured},
        {runnable_cpu_backends().back(), fused}, {runnable_cpu_backends().back(), measured}}) {
    for (const bool changes : {false, true}) {
      const Plan plan = Plan::build(config, options);
      const Kernels& kernels = select_kernels(backend, Activations::bf16);
      CpuExecutor executor(weights, nullptr, {&plan}, backend, kernels, {.num_workers = 3});
      KvCache cache(config, {.max_context = 512, .max_step_tokens = 5, .num_seqs = 1});
      std::vector<float> logits;
      uint32_t num_small = 0, num_asked = 0;
      for (uint32_t begin = 0; begin < tokens.size(); begin += 5) {
        if (changes && begin % 20 == 5) choose(executor.team(), {1, 0, 0});
        if (changes && begin % 20 == 10) choose(executor.team(), {0, 1});
        if (changes && begin % 20 == 15) executor.team().reset();
        const StepRows rows(tokens, 0, begin, begin + 5);
        cache.reserve(0, begin + 5);
        StepOutput output;
        executor.run(plan, cache, rows.input, output);
        num_asked += !executor.team().is_whole();
        num_small += executor.running_team_size() < 3;
        for (uint32_t r = 0; r < 5; ++r) {
          const float* row = output.logits + uint64_t{r} * output.logits_stride;
          logits.insert(logits.end(), row, row + config.vocab_size);
        }
        CHECK(executor.buffer_data(plan, kLogits) == reinterpret_cast<const uint8_t*>(output.logits));
      }
      CHECK_EQ(num_asked, changes ? 6u : 0u);
      CHECK_EQ(num_small > 0, changes);  // the first time a size is asked for, its plan may not be there yet
      if (!changes) expected = logits;
      CHECK(logits == expected);
    }
  }
}

// As many as it takes until the plan for one worker is there. ThreadSanitizer makes tokens slow, not the planner.
#if defined(__SANITIZE_THREAD__)
constexpr uint32_t kNumTokens = 200;
#else
constexpr uint32_t kNumTokens = 1500;
#endif

TEST_CASE("rounds go on in jobs whose teams change, with the tokens of one team") {
  for (const DraftStyle& style : draft_styles(4)) {
    if (num_usable_cores() < 2) continue;  // then nobody yields
    const DraftModel model(style);
    std::vector<int32_t> expected;
    for (const bool changes : {false, true}) {
      DraftRun run(model.weights, model.draft, {.num_workers = 2, .max_context = 2048});
      const std::string backend = runnable_cpu_backends().back();
      ExecutorOptions options{.num_workers = 2, .yield_cores = changes, .max_job_us = 500};
      CpuExecutor executor(model.weights, &model.draft, {&run.step_plan, &run.round_plan}, backend,
                           select_kernels(backend, Activations::bf16), options);
      const int32_t anchor = run.feed(random_tokens(style.config, 27, 3));
      run.begin_rounds(anchor);
      run.state->request.max_tokens = kNumTokens;
      run.state->begin();
      if (changes) choose(executor.team(), {0, 1});
      std::set<uint32_t> sizes;
      executor.run_rounds(run.round_plan, run.cache, *run.state, [&] {
        run.poll();
        const bool is_new = sizes.insert(executor.running_team_size()).second;
        // The next job has the new team. The one that runs is over soon: its team is small.
        if (changes && is_new && sizes.contains(1)) executor.team().reset();
      });
      run.settle();
      CHECK(run.state->end == RoundEnd::max_tokens);
      CHECK_EQ(run.tokens_out.size(), kNumTokens - 1);
      if (changes) CHECK(sizes.contains(1) && sizes.contains(2));
      else CHECK_EQ(sizes, std::set<uint32_t>{2});
      if (!changes) expected = run.tokens_out;
      CHECK(run.tokens_out == expected);
    }
  }
}

TEST_CASE("an executor that yields watches its team: a small one tries to be whole again") {
  const ModelConfig config = small_quantised();
  const Weights weights = Weights::synthetic(config, 11);
  const std::vector<int32_t> tokens = random_tokens(config, 5, 3);
  const std::string backend = runnable_cpu_backends().back();
  const Plan plan = Plan::build(config, plan_options(2, 5, 5));
  for (const bool yields : {true, false}) {
    CpuExecutor executor(weights, nullptr, {&plan}, backend, select_kernels(backend, Activations::bf16),
                         {.num_workers = 2, .yield_cores = yields});
    if (num_usable_cores() < 2) continue;  // then nobody yields
    KvCache cache(config, {.max_context = 512, .max_step_tokens = 5, .num_seqs = 1});
    cache.reserve(0, 5);
    choose(executor.team(), {0, 1});
    const auto begin = std::chrono::steady_clock::now();
    while (!executor.team().is_whole() &&
           std::chrono::steady_clock::now() - begin < std::chrono::seconds(yields ? 60 : 1)) {
      const StepRows rows(tokens, 0, 0, 5);
      StepOutput output;
      executor.run(plan, cache, rows.input, output);
    }
    CHECK_EQ(executor.team().is_whole(), yields);
  }
}

#if !defined(__SANITIZE_THREAD__)  // it does not support threads that a fork begins
TEST_CASE("a fork lets plans of smaller teams go, and no thread of its own with those that made them") {
  const ModelConfig config = test_configs::tiny();
  const Plan plan = Plan::build(config, plan_options(2, 5, 5));
  auto states = std::make_unique<PlanStates>(std::vector{&plan}, config, nullptr);
  while (!states->smaller(plan, 1)) std::this_thread::yield();
  check_in_fork([&] {
    std::atomic<bool> may_end{false};
    std::thread of_fork([&] { may_end.wait(false); });
    states.reset();
    may_end = true;
    may_end.notify_one();
    of_fork.join();
    return true;
  });
}
#endif

CHECK_MAIN()
