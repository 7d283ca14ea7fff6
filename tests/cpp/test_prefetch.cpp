// What a worker fetches while it waits is what its task reads first.
#include "check.h"
#include "serial_workers.h"

#include <map>
#include <string>

using namespace mimo_rt;
using namespace fixture;

namespace {

struct Counts {
  uint32_t announced = 0, right = 0, products = 0;
};

/// One step of `num_rows` tokens, counted by kind of task. Nobody takes over work of another: who has finished its own
/// part begins somewhere else.
std::map<TaskKind, Counts> run_step(const Weights& weights, uint32_t num_workers, uint32_t num_rows) {
  const Plan plan = Plan::build(weights.config(), plan_options(num_workers, num_rows, num_rows));
  SerialWorkers workers(weights, nullptr, {&plan}, "cpu-generic");
  workers.can_steal = false;
  KvCache cache(weights.config(), {.max_context = 64, .max_step_tokens = num_rows, .num_seqs = 1});
  cache.reserve(0, num_rows);
  const std::vector<int32_t> tokens = random_tokens(weights.config(), num_rows, 5);
  const StepRows rows(tokens, 0, 0, num_rows);
  StepOutput output;
  workers.run(plan, cache, rows.input, output);
  std::map<TaskKind, Counts> counts;
  for (uint32_t w = 0; w < num_workers; ++w)
    for (uint32_t i = 0; i < plan.tasks(w).size(); ++i) {
      const SerialWorkers::Work& work = workers.work(w, i);
      Counts& of_kind = counts[plan.tasks(w)[i].kind];
      of_kind.products += work.first_read != nullptr;
      of_kind.announced += work.announced.begin != nullptr;
      of_kind.right += work.first_read && work.announced.begin == work.first_read;
      CHECK(work.announced.begin <= work.announced.end);
      CHECK(work.announced.end - work.announced.begin <= 128 * 1024);
    }
  return counts;
}

}  // namespace

TEST_CASE("what is announced is what is read first; only expert_gate_up has to wait for its route") {
  const Weights weights = Weights::synthetic(small_quantised(), 3);
  for (const uint32_t num_workers : {1u, 2u, 3u, 7u})
    for (const uint32_t num_rows : {1u, 5u})
      for (const auto& [kind, counts] : run_step(weights, num_workers, num_rows)) {
        if (kind == TaskKind::expert_gate_up) {
          CHECK_EQ(counts.announced, 0u);
        } else {
          CHECK_EQ(counts.announced, counts.products);
          CHECK_EQ(counts.right, counts.products);
        }
        CHECK(kind != TaskKind::expert_down || counts.products >= num_workers);
      }
}

TEST_CASE("control: without the task before, or with that of another layer, the experts of expert_down are not known") {
  const Weights weights = Weights::synthetic(small_quantised(), 3);
  const Plan plan = Plan::build(weights.config(), plan_options(1, 4, 4));
  const cpu::Kernels& kernels = cpu::select_kernels("cpu-generic", Activations::bf16);
  std::vector<std::unique_ptr<cpu::PlanState>> states;
  states.push_back(std::make_unique<cpu::PlanState>(plan, weights.config()));
  cpu::PlanState& state = *states[0];
  const StepInput input;
  const cpu::Step step{&state, nullptr, &input, nullptr, 1};
  const cpu::Worker worker(weights, kernels, cpu::ScratchSizes(weights, kernels, states), step);
  for (const Task& task : plan.tasks(0)) {
    if (task.kind != TaskKind::expert_down) continue;
    const Task& before = *(&task - 1);
    const auto begin = [&](const Task* other) { return cpu::first_weights(task, other, worker).begin; };
    const LayerWeights& layer = weights.layer(task.layer_idx);
    for (const uint32_t expert : {0u, 7u}) {
      *state.route.num_active = 1;
      state.route.active_experts[0] = expert;
      CHECK_EQ(begin(&before), layer.expert_down[expert].row_group(task.tile_first));
      CHECK(begin(nullptr) == nullptr);
      CHECK(begin(&task) == nullptr);
      Task elsewhere = before;
      ++elsewhere.layer_idx;
      CHECK(begin(&elsewhere) == nullptr);
    }
    *state.route.num_active = 0;
    CHECK(begin(&before) == nullptr);
  }
}

CHECK_MAIN()
