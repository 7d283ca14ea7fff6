// Units of shared tasks: each is run once, whoever runs it, and only phases that begin and end as one are shared.
#include "check.h"
#include "plan_mutator.h"
#include "step_fixture.h"

#include "cpu/work_stealing.h"

#include <atomic>
#include <thread>
#include <vector>

using namespace mimo_rt;
using namespace mimo_rt::cpu;
using namespace fixture;

namespace {

uint32_t count_shared(const Plan& plan) {
  const WorkStealing stealing(plan);
  uint32_t count = 0;
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (uint32_t i = 0; i < plan.tasks(w).size(); ++i) count += stealing.place(w, i).phase != nullptr;
  return count;
}

/// Of all tokens, fed in steps as large as the plan's.
std::vector<float> logits_of(const Weights& weights, const Plan& plan, const std::vector<int32_t>& tokens) {
  const ModelConfig& config = weights.config();
  const uint32_t chunk = plan.options().max_tokens;
  ExecutorOptions options;
  options.num_workers = plan.num_workers();
  const auto executor = make_cpu_executor(weights, nullptr, {&plan}, runnable_cpu_backends().back(), options);
  KvCache cache(config, {.max_context = 1200, .max_step_tokens = chunk, .num_seqs = 1});
  return feed(*executor, plan, cache, tokens, chunk, config.vocab_size);
}

Plan plan_for(uint32_t num_workers) {
  return Plan::build(test_configs::tiny(), plan_options(num_workers, 8, 8));
}

}  // namespace

TEST_CASE("every unit is run once in every epoch, by whoever takes it") {
  constexpr uint32_t kNumThreads = 3, kNumUnits = 37, kNumEpochs = 400;
  Task task{};
  UnitQueue queues[kNumThreads];
  SharedPhase phase;
  for (UnitQueue& queue : queues) phase.parts.push_back({&task, &queue});
  std::vector<std::atomic<uint32_t>> runs(kNumEpochs);
  std::atomic<uint32_t> arrived{0}, stolen{0};
  const auto work = [&](uint32_t idx) {
    for (uint32_t epoch = 0; epoch < kNumEpochs; ++epoch) {
      uint32_t own = 0;
      run_shared({&phase, idx}, task, epoch, [](const Task&) { return uint32_t{kNumUnits}; },
                 [&](const Task&, uint32_t begin, uint32_t end) {
                   own += end - begin;
                   runs[epoch] += end - begin;
                   if (idx == 0) std::this_thread::yield();  // the slow one
                 });
      if (own > kNumUnits) ++stolen;
      ++arrived;
      while (arrived < kNumThreads * (epoch + 1)) std::this_thread::yield();
    }
  };
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kNumThreads; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
  for (const auto& count : runs) CHECK_EQ(count.load(), kNumThreads * kNumUnits);
  CHECK(stolen > 0);
}

TEST_CASE("what an epoch left is forgotten in the next, also by a queue that was not used for long") {
  UnitQueue queue;
  CHECK_EQ(queue.take_first(5, 8).end, 4u);
  CHECK_EQ(queue.take_last(5, 8).begin, 6u);
  for (const uint64_t epoch : {6ull, 6ull + (1ull << 31), 7ull + (1ull << 32)}) {
    CHECK_EQ(queue.take_last(epoch, 8).begin, 4u);
    CHECK(queue.take_first(epoch, 0).is_empty() == false);  // three units are left of the eight
    CHECK_EQ(queue.take_first(epoch, 8).end, 3u);
    CHECK_EQ(queue.take_first(epoch, 8).end, 4u);
    CHECK(queue.take_first(epoch, 8).is_empty());
  }
}

TEST_CASE("phases are shared where they begin and end as one, and only there") {
  CHECK_EQ(count_shared(plan_for(1)), 0u);
  const Plan plan = plan_for(3);
  const uint32_t all = count_shared(plan);
  CHECK(all > 0);
  // A counter of which somebody waits for a part.
  PlanMutator early(plan);
  uint32_t num_early = 0;
  for (Task& task : early.lists[0])
    if (task.kind == TaskKind::o_proj && task.layer_idx == 1) early.counters[task.signal_counter].total = 4, ++num_early;
  CHECK_EQ(num_early, 1u);
  CHECK(count_shared(early.finish()) < all);
  // A counter that nobody waits for.
  PlanMutator unread(plan);
  for (auto& list : unread.lists)
    for (Task& task : list)
      for (uint32_t i = 0; i < task.num_waits; ++i)
        if (task.kind == TaskKind::sample) task.waits[i].value = 0;
  CHECK_EQ(count_shared(unread.finish()), all - 3);  // lm_head
  // A task that begins before the others.
  PlanMutator hasty(plan);
  for (Task& task : hasty.lists[1])
    if (task.kind == TaskKind::lm_head) task.num_waits = 0;
  CHECK(count_shared(hasty.finish()) < all);
}

TEST_CASE("results do not depend on who computes what") {
  const ModelConfig config = test_configs::tiny();
  const Weights weights = Weights::synthetic(config, 11);
  const std::vector<int32_t> tokens = random_tokens(config, 40, 3);
  PlanMutator fine(plan_for(4));
  for (auto& list : fine.lists)
    for (Task& task : list) task.cost_ns = 1'000'000;  // so that tiles are taken one by one
  CHECK(bit_equal(logits_of(weights, fine.finish(), tokens), logits_of(weights, plan_for(1), tokens)));
}

// An expert's rows fit the scratch many times over, because the hidden size is large and the experts are narrow, but not
// the results of so many.
TEST_CASE("more rows of one expert than a block holds, with room for all of them") {
  ModelConfig config = test_configs::tiny();
  config.hidden_size = 1024;
  config.expert_intermediate_size = 32;
  config.num_experts = config.experts_per_token = 2;
  const Weights weights = Weights::synthetic(config, 11);
  const std::vector<int32_t> tokens = random_tokens(config, 1100, 3);
  const std::vector<float> whole = logits_of(weights, Plan::build(config, plan_options(2, 1100, 1100)), tokens);
  CHECK(bit_equal(whole, logits_of(weights, Plan::build(config, plan_options(1, 100, 100)), tokens)));
}

CHECK_MAIN()
