// Which plans let workers share: those whose phases come one after the other, with all of their matrix products.
#include "check.h"
#include "plan_mutator.h"
#include "serial_workers.h"

#include <string>
#include <utility>
#include <vector>

using namespace mimo_rt;
using namespace fixture;

namespace {

ModelConfig two_heads() {
  ModelConfig config = test_configs::tiny();
  for (LayerConfig& layer : config.layers)
    layer = test_configs::make_layer({2, 2, 16, 16, 16}, layer.is_moe, layer.window_tokens, layer.has_sink);
  return config;
}

/// A plan of two workers in which attention follows qkv_proj by the order of each worker's list alone: a worker makes
/// q, k and v of the very head that it attends to, and waits for nobody.
Plan with_same_worker_edges(const ModelConfig& config) {
  PlanMutator mutator(Plan::build(config, plan_options(2, 8, 8)));
  std::vector<uint32_t> counters(config.num_layers);
  for (uint32_t w = 0; w < 2; ++w)
    for (Task& task : mutator.lists[w]) {
      if (task.kind == TaskKind::qkv_proj) {  // tiles: q0 q1 k0 k1 v0 v1
        task.tile_first = w, task.tile_stride = 2, task.tile_end = 6;
        counters[task.layer_idx] = task.signal_counter;
      }
      if (task.kind == TaskKind::attention) task.num_waits = 0;
      if (task.kind == TaskKind::o_proj) task.waits[task.num_waits++] = {counters[task.layer_idx], 2};
    }
  return mutator.finish();
}

}  // namespace

TEST_CASE("plans as they are made share all work that comes in units") {
  const auto count_wanted = [](const Plan& plan) {
    uint32_t count = 0;
    for (uint32_t w = 0; w < plan.num_workers(); ++w)
      for (const Task& task : plan.tasks(w)) {
        const std::string kind = task_kind_name(task.kind);
        const bool is_product = kind.ends_with("_proj") || kind.ends_with("lm_head") || kind.starts_with("expert") ||
                                task.kind == TaskKind::context_fc;
        const bool is_alone = task.signal_counter == kNoCounter || plan.counters()[task.signal_counter].total == 1;
        count += is_product && task.kind != TaskKind::draft_qkv_proj && !is_alone;
      }
    return count;
  };
  for (const auto& [name, config] : test_configs::tiny_configs()) {
    const DraftConfig draft = test_configs::tiny_draft(config, 4);
    for (const uint32_t num_workers : {1u, 2u, 3u, 5u, 16u})
      for (const auto fuse : {PlanOptions::FuseNorm::yes, PlanOptions::FuseNorm::no})
        for (const uint32_t context_rows : {0u, 4u})
          for (const bool is_round : {false, true}) {
            PlanOptions options = plan_options(num_workers, 4, 4, fuse);
            options.max_context_rows = context_rows;
            options.is_round = is_round;
            const Plan plan = Plan::build(config, options, context_rows ? &draft : nullptr);
            CHECK_EQ(count_shared(plan), count_wanted(plan));
            CHECK_EQ(count_shared(plan) > 0, num_workers > 1);
          }
  }
}

TEST_CASE("nothing is shared in plans whose phases do not come one after the other") {
  const Plan plan = Plan::build(test_configs::tiny(), plan_options(3, 8, 8));
  const uint32_t all = count_shared(plan);
  CHECK(all > 0);
  const auto shared = [&](const auto& change) {
    PlanMutator mutator(plan);
    uint32_t num_changed = 0;
    for (uint32_t w = 0; w < 3; ++w)
      for (Task& task : mutator.lists[w]) num_changed += change(mutator, w, task);
    CHECK(num_changed > 0);
    return count_shared(mutator.finish());
  };
  const auto is_at = [](const Task& task, TaskKind kind, uint16_t layer_idx) {
    return task.kind == kind && task.layer_idx == layer_idx;
  };
  CHECK_EQ(shared([](auto&, uint32_t, Task&) { return true; }), all);
  // A wait for a part of a phase, and a counter with more signals to come than the phase has tasks.
  CHECK_EQ(shared([&](auto&, uint32_t w, Task& task) {
    return w == 2 && is_at(task, TaskKind::o_proj, 1) && (task.waits[0].value = 2);
  }), 0u);
  CHECK_EQ(shared([&](PlanMutator& mutator, uint32_t w, Task& task) {
    return w == 0 && is_at(task, TaskKind::o_proj, 1) && (mutator.counters[task.signal_counter].total = 4);
  }), 0u);
  // A wait for others of the own phase beside that for the phase before.
  CHECK_EQ(shared([&](auto&, uint32_t w, Task& task) {
    if (w != 1 || !is_at(task, TaskKind::o_proj, 1) || task.num_waits != 1) return false;
    task.waits[1] = {task.signal_counter, 1};
    task.num_waits = 2;
    return true;
  }), 0u);
  // A task that begins before the others of its phase: after no phase, or after an earlier one.
  CHECK_EQ(shared([&](auto&, uint32_t w, Task& task) {
    return w == 1 && task.kind == TaskKind::lm_head && (task.num_waits = 0, true);
  }), 0u);
  uint32_t earlier = kNoCounter, later = kNoCounter - 1;
  CHECK_EQ(shared([&](auto&, uint32_t w, Task& task) {
    if (w == 1 && is_at(task, TaskKind::qkv_proj, 1)) earlier = task.signal_counter;
    return w == 1 && is_at(task, TaskKind::o_proj, 1) && (task.waits[0].counter = earlier, true);
  }), 0u);
  // A counter of two phases, a task without one.
  CHECK_EQ(shared([&](auto&, uint32_t w, Task& task) {
    if (w == 0 && is_at(task, TaskKind::qkv_proj, 1)) earlier = task.signal_counter;
    for (Wait& wait : task.waits)
      if (wait.counter == later) wait.counter = earlier;
    const bool is_signaller = is_at(task, TaskKind::o_proj, 1);
    if (is_signaller) later = std::exchange(task.signal_counter, earlier);
    return is_signaller;
  }), 0u);
  CHECK_EQ(shared([&](auto&, uint32_t w, Task& task) {
    return w == 1 && is_at(task, TaskKind::o_proj, 1) && (task.signal_counter = kNoCounter);
  }), 0u);
  // Two ops in one phase.
  CHECK_EQ(shared([&](auto&, uint32_t w, Task& task) {
    return w == 1 && task.kind == TaskKind::lm_head && (task.flags ^= kFusedNorm, true);
  }), all - 3);
  CHECK_EQ(shared([&](auto&, uint32_t w, Task& task) {
    return w == 1 && task.kind == TaskKind::lm_head && (task.kind = TaskKind::router, true);
  }), all - 3);
  // Epochs that overlap: a worker that does not wait for the gate, a gate that opens too early.
  CHECK_EQ(shared([&](auto&, uint32_t w, Task& task) {
    return w == 2 && task.kind == TaskKind::embed && (task.num_waits = 0, true);
  }), 0u);
  CHECK_EQ(shared([&](PlanMutator& mutator, uint32_t w, Task& task) {
    if (w != 0 || task.kind != TaskKind::select_experts || task.layer_idx != 1) return false;
    mutator.gate_counter = task.signal_counter;
    for (auto& list : mutator.lists) list[0].waits[0].counter = task.signal_counter;
    return true;
  }), 0u);
  // Likewise, and a last task that nobody hears of.
  CHECK_EQ(shared([&](PlanMutator& mutator, uint32_t, Task& task) {
    if (task.kind == TaskKind::lm_head) mutator.gate_counter = task.signal_counter;
    if (task.kind != TaskKind::sample) return false;
    for (auto& list : mutator.lists) list[0].waits[0].counter = mutator.gate_counter;
    task.signal_counter = kNoCounter;
    return true;
  }), 0u);
}

// Plan::verify() knows that a worker's own tasks are in order, and a plan may rely on that alone. But who lets others
// do a part of its task is not done with it when it goes on.
TEST_CASE("a worker that goes on to its next task without waiting does its own work itself") {
  const ModelConfig config = two_heads();
  const Weights weights = Weights::synthetic(config, 11);
  const Plan plan = with_small_parts(with_same_worker_edges(config));
  const Plan one = Plan::build(config, plan_options(1, 8, 8));
  plan.verify();
  CHECK_EQ(count_shared(plan), 0u);
  const auto logits_of = [&](const Plan& run_plan, const auto& change_workers) {
    SerialWorkers workers(weights, nullptr, {&run_plan}, runnable_cpu_backends().back());
    change_workers(workers);
    KvCache cache(config, {.max_context = 64, .max_step_tokens = 8, .num_seqs = 1});
    return feed(workers, run_plan, cache, random_tokens(config, 24, 3), 8, config.vocab_size);
  };
  const auto let_first_go_on = [](SerialWorkers& workers) {
    workers.before_product = [&workers](uint32_t w, const Task& task, uint32_t number) {
      const bool has_done_its_own = number >= 3;
      if (w == 1 && task.kind == TaskKind::qkv_proj && has_done_its_own)
        workers.advance(0);  // to attention, without what is about to be computed here
    };
  };
  CHECK(bit_equal(logits_of(plan, let_first_go_on), logits_of(one, [](SerialWorkers&) {})));
}

CHECK_MAIN()
