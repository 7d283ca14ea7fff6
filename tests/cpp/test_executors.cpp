// Whole steps: the CPU executor against the reference, against itself, and when things go wrong.
#include "cpu/counters.h"
#include "plan_mutator.h"
#include "step_fixture.h"

#include "check.h"

#include <time.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

using namespace mimo_rt;
using namespace fixture;

namespace {

/// Logits of a fresh executor, cache and plan.
std::vector<float> run_cpu(const Weights& weights, const std::string& backend, uint32_t num_workers,
                           uint32_t chunk, const std::vector<int32_t>& tokens,
                           PlanOptions::FuseNorm fuse = PlanOptions::FuseNorm::automatic,
                           Activations activations = Activations::bf16) {
  const ModelConfig& config = weights.config();
  const Plan plan = Plan::build(config, plan_options(num_workers, chunk, chunk, fuse));
  ExecutorOptions options;
  options.num_workers = num_workers;
  options.activations = activations;
  const auto executor = make_cpu_executor(weights, nullptr, {&plan}, backend, options);
  KvCache cache(config, {.max_context = 512, .max_step_tokens = chunk, .num_seqs = 1});
  return feed(*executor, plan, cache, tokens, chunk, config.vocab_size);
}

std::vector<float> run_ref(const Weights& weights, const std::vector<int32_t>& tokens,
                           uint32_t chunk, bool exact,
                           Activations activations = Activations::bf16) {
  const ModelConfig& config = weights.config();
  const Plan plan = Plan::build(config, plan_options(2, chunk, chunk));
  ExecutorOptions options;
  options.activations = activations;
  const auto executor = make_ref_executor(weights, nullptr, {&plan}, options, exact);
  KvCache cache(config, {.max_context = 512, .max_step_tokens = chunk, .num_seqs = 1});
  return feed(*executor, plan, cache, tokens, chunk, config.vocab_size);
}

double process_cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

// The reference with the same roundings differs from the exact model by the rounding noise of this model and these
// tokens. The CPU executor rounds at the same places, so its distance to the exact model must be the same noise: at most
// twice as large. A model with another window is far outside.
TEST_CASE("logits are as close to the exact model as the rounding points allow") {
  for (const auto& [name, config] : test_configs::tiny_configs()) {
    const Weights weights = Weights::synthetic(config, 11);
    const std::vector<int32_t> tokens = random_tokens(config, 40, 3);
    const std::vector<float> exact = run_ref(weights, tokens, 8, true);
    const double noise = relative_distance(run_ref(weights, tokens, 8, false), exact);
    CHECK(noise > 0.0 && noise < 0.05);
    for (const std::string& backend : runnable_cpu_backends()) {
      const double distance = relative_distance(run_cpu(weights, backend, 2, 8, tokens), exact);
      if (!(distance <= 2 * noise))
        check::report(__FILE__, __LINE__, name + " " + backend + ": distance " +
                                              std::to_string(distance) + ", noise " +
                                              std::to_string(noise));
      CHECK(distance > 0.0);
    }
  }
}

TEST_CASE("the exact comparison sees a window of one key more or less, a dropped sink, a wrong scale") {
  const ModelConfig config = test_configs::tiny();
  const std::vector<int32_t> tokens = random_tokens(config, 40, 3);
  const Weights weights = Weights::synthetic(config, 11);
  const std::vector<float> exact = run_ref(weights, tokens, 8, true);
  const double noise = relative_distance(run_ref(weights, tokens, 8, false), exact);
  const auto changed = [&](auto change) {
    ModelConfig wrong = config;
    change(wrong);
    return relative_distance(run_ref(Weights::synthetic(wrong, 11), tokens, 8, true), exact);
  };
  CHECK_EQ(changed([](ModelConfig&) {}), 0.0);
  CHECK(changed([](ModelConfig& c) { c.layers[1].window_tokens += 1; }) > 4 * noise);
  CHECK(changed([](ModelConfig& c) { c.layers[1].window_tokens -= 1; }) > 4 * noise);
  CHECK(changed([](ModelConfig& c) { c.value_scale = 1.1; }) > 4 * noise);
  CHECK(changed([](ModelConfig& c) { c.layers[1].rope_theta = 1e6; }) > 4 * noise);
  CHECK(changed([](ModelConfig& c) { c.routed_scaling_factor = 1.2; }) > 4 * noise);
  const Weights sinkless = Weights::synthetic(config, 11);
  for (uint32_t h = 0; h < 4; ++h) const_cast<float*>(sinkless.layer(1).sink_logits)[h] = -1e30f;
  CHECK(relative_distance(run_ref(sinkless, tokens, 8, true), exact) > 4 * noise);
}

TEST_CASE("logits are bit-equal for any chunk, any worker count, fused or not, twice") {
  for (const ModelConfig& config : {small_quantised(), test_configs::tiny_ragged_tied()}) {
    const Weights weights = Weights::synthetic(config, 5);
    const std::vector<int32_t> tokens = random_tokens(config, 150, 9);
    for (const std::string& backend : runnable_cpu_backends()) {
      const std::vector<float> alone = run_cpu(weights, backend, 1, 1, tokens);
      CHECK(bit_equal(alone, run_cpu(weights, backend, 1, 1, tokens)));
      for (const uint32_t num_workers : {1u, 2u, 3u})
        for (const uint32_t chunk : {8u, 64u, 150u})
          for (const auto fuse : {PlanOptions::FuseNorm::yes, PlanOptions::FuseNorm::no})
            CHECK(bit_equal(alone, run_cpu(weights, backend, num_workers, chunk, tokens, fuse)));
      // Control: another token early in the sequence changes later logits.
      std::vector<int32_t> other = tokens;
      other[0] = other[0] ? 0 : 1;
      CHECK(!bit_equal(alone, run_cpu(weights, backend, 2, 64, other)));
    }
  }
}

TEST_CASE("with INT8 activations logits are bit-equal for any chunk and worker count, and close to the reference's") {
  const ModelConfig config = small_quantised();
  const Weights weights = Weights::synthetic(config, 5);
  const std::vector<int32_t> tokens = random_tokens(config, 150, 9);
  constexpr auto kFuse = PlanOptions::FuseNorm::automatic;
  const std::vector<float> ref = run_ref(weights, tokens, 64, false, Activations::int8);
  const std::vector<float> exact = run_ref(weights, tokens, 64, true);
  const double noise = relative_distance(run_ref(weights, tokens, 64, false), exact);
  CHECK(relative_distance(ref, exact) > noise);  // what INT8 costs
  for (const std::string& backend : runnable_cpu_backends()) {
    const std::vector<float> alone = run_cpu(weights, backend, 1, 1, tokens, kFuse, Activations::int8);
    for (const uint32_t num_workers : {1u, 2u, 3u})
      for (const uint32_t chunk : {7u, 8u, 64u, 150u})
        CHECK(bit_equal(alone, run_cpu(weights, backend, num_workers, chunk, tokens, kFuse, Activations::int8)));
    CHECK(!bit_equal(alone, run_cpu(weights, backend, 1, 8, tokens)));
    // Both round at the same places. A rounding that falls the other way moves an activation by a whole step.
    CHECK(relative_distance(alone, ref) < relative_distance(ref, exact));
  }
}

TEST_CASE("a sequence does not depend on the sequences beside it") {
  const ModelConfig config = small_quantised();
  const Weights weights = Weights::synthetic(config, 5);
  const std::vector<int32_t> a = random_tokens(config, 20, 1), b = random_tokens(config, 20, 2);
  const Plan plan = Plan::build(config, plan_options(2, 8, 8));
  ExecutorOptions options;
  options.num_workers = 2;
  for (const std::string& backend : runnable_cpu_backends()) {
    const auto executor = make_cpu_executor(weights, nullptr, {&plan}, backend, options);
    KvCache alone(config, {.max_context = 64, .max_step_tokens = 8, .num_seqs = 1});
    const std::vector<float> expected =
        feed(*executor, plan, alone, b, 8, config.vocab_size);
    KvCache cache(config, {.max_context = 64, .max_step_tokens = 8, .num_seqs = 3});
    cache.reserve(0, 20);
    cache.reserve(2, 20);
    std::vector<float> logits;
    for (uint32_t pos = 0; pos < 20; pos += 2) {  // rows of both sequences alternate in one step
      const int32_t ids[] = {a[pos], b[pos], a[pos + 1], b[pos + 1]};
      const uint32_t seqs[] = {0, 2, 0, 2}, positions[] = {pos, pos, pos + 1, pos + 1};
      const uint32_t rows[] = {1, 3};
      StepInput input{4, ids, seqs, positions, 2, rows, nullptr};
      StepOutput output;
      executor->run(plan, cache, input, output);
      for (uint32_t r = 0; r < 2; ++r) {
        const float* row = output.logits + r * output.logits_stride;
        logits.insert(logits.end(), row, row + config.vocab_size);
      }
      CHECK(output.active_experts >= 3 * 3 && output.active_experts <= 3 * 10);
    }
    CHECK(bit_equal(expected, logits));
  }
}

TEST_CASE("several plans of one executor share the cache and keep their own epochs") {
  const ModelConfig config = small_quantised();
  const Weights weights = Weights::synthetic(config, 5);
  const std::vector<int32_t> tokens = random_tokens(config, 48, 4);
  const Plan decode = Plan::build(config, plan_options(2, 1, 1));
  const Plan prefill = Plan::build(config, plan_options(2, 32, 32));
  const std::string backend = runnable_cpu_backends().back();
  ExecutorOptions options;
  options.num_workers = 2;
  const auto executor = make_cpu_executor(weights, nullptr, {&decode, &prefill}, backend, options);
  KvCache cache(config, {.max_context = 64, .max_step_tokens = 32, .num_seqs = 1});
  cache.reserve(0, 48);
  std::vector<float> logits;
  for (uint32_t begin = 0, end = 0; begin < 48; begin = end) {
    const bool is_prefill = begin % 16 == 0;
    end = begin + (is_prefill ? 13 : 1);
    const StepRows rows(tokens, 0, begin, end);
    StepOutput output;
    executor->run(is_prefill ? prefill : decode, cache, rows.input, output);
    for (uint32_t r = 0; r < end - begin; ++r) {
      const float* row = output.logits + uint64_t{r} * output.logits_stride;
      logits.insert(logits.end(), row, row + config.vocab_size);
    }
  }
  CHECK(bit_equal(logits, run_cpu(weights, backend, 1, 1, tokens)));
  const Plan stranger = Plan::build(config, plan_options(2, 1, 1));
  const StepRows rows(tokens, 0, 0, 1);
  StepOutput output;
  CHECK_THROWS(invalid_argument, "plan", executor->run(stranger, cache, rows.input, output));
}

TEST_CASE("a lost signal is a timeout with a hang report, and the executor stays stopped") {
  const ModelConfig config = test_configs::tiny();
  const Weights weights = Weights::synthetic(config, 1);
  const std::vector<int32_t> tokens = random_tokens(config, 1, 1);
  const Plan whole = Plan::build(config, plan_options(2, 1, 1));
  PlanMutator mutator(whole);
  uint32_t counter = kNoCounter;
  for (Task& task : mutator.lists[0])
    if (task.kind == TaskKind::o_proj && task.layer_idx == 1) std::swap(counter, task.signal_counter);
  CHECK(counter != kNoCounter);
  const Plan plan = mutator.finish();
  ExecutorOptions options;
  options.num_workers = 2;
  options.timeout_ms = 50;
  KvCache cache(config, {.max_context = 64, .max_step_tokens = 1, .num_seqs = 1});
  cache.reserve(0, 1);
  const StepRows rows(tokens, 0, 0, 1);
  StepOutput output;
  const auto executor = make_cpu_executor(weights, nullptr, {&plan}, runnable_cpu_backends().back(), options);
  const auto begin = std::chrono::steady_clock::now();
  CHECK_THROWS(timeout, plan.counters()[counter].name,
               executor->run(plan, cache, rows.input, output));
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(10));
  CHECK_THROWS(timeout, "layer 1", executor->run(plan, cache, rows.input, output));
  const auto ref = make_ref_executor(weights, nullptr, {&plan}, {}, false);
  CHECK_THROWS(plan_invalid, "layer 1", ref->run(plan, cache, rows.input, output));
}

TEST_CASE("keys and values of the exact reference go with their cache") {
  const ModelConfig config = test_configs::tiny();
  const Weights weights = Weights::synthetic(config, 1);
  const Plan plan = Plan::build(config, plan_options(1, 4, 4));
  const auto executor = make_ref_executor(weights, nullptr, {&plan}, {}, true);
  const std::vector<int32_t> tokens = random_tokens(config, 8, 1);
  const KvCache::Options options{.max_context = 64, .max_step_tokens = 4, .num_seqs = 1};
  std::optional<KvCache> cache(std::in_place, config, options);
  executor->prepare(*cache);
  const uint64_t num_bytes = cache->bytes();
  uint64_t num_values = 0;
  for (const LayerConfig& layer : config.layers)
    num_values += layer.num_kv_heads * (layer.qk_head_dim + layer.v_head_dim);
  CHECK_EQ(num_bytes, 64 * num_values * sizeof(double));

  const auto logits_of_last = [&] {
    const StepRows last(tokens, 0, 7, 8);
    StepOutput output;
    cache->reserve(0, 8);
    executor->run(plan, *cache, last.input, output);
    return std::vector<float>(output.logits, output.logits + config.vocab_size);
  };
  feed(*executor, plan, *cache, tokens, 4, config.vocab_size);
  const std::vector<float> with_context = logits_of_last();
  CHECK(bit_equal(logits_of_last(), with_context));  // control
  const std::weak_ptr<KvStore> first = cache->store();
  cache->truncate(0, 0);
  cache->release_memory();
  CHECK(first.expired());
  CHECK_EQ(cache->bytes(), num_bytes);
  CHECK(!bit_equal(logits_of_last(), with_context));
  feed(*executor, plan, *cache, tokens, 4, config.vocab_size);
  CHECK(bit_equal(logits_of_last(), with_context));
  const std::weak_ptr<KvStore> second = cache->store();
  cache.emplace(config, options);  // at the same address
  CHECK(second.expired());
  CHECK(!bit_equal(logits_of_last(), with_context));
}

TEST_CASE("eight workers on few cores finish with the same logits") {
  const ModelConfig config = small_quantised();
  const Weights weights = Weights::synthetic(config, 5);
  const std::vector<int32_t> tokens = random_tokens(config, 24, 9);
  const std::string backend = runnable_cpu_backends().back();
  CHECK(bit_equal(run_cpu(weights, backend, 1, 1, tokens),
                  run_cpu(weights, backend, 8, 8, tokens)));
}

TEST_CASE("an idle executor uses no CPU time") {
  const ModelConfig config = test_configs::tiny();
  const Weights weights = Weights::synthetic(config, 1);
  const Plan plan = Plan::build(config, plan_options(2, 1, 1));
  ExecutorOptions options;
  options.num_workers = 2;
  const auto idle_seconds = [&](uint32_t park_after_us) {
    options.park_after_us = park_after_us;
    const auto executor = make_cpu_executor(weights, nullptr, {&plan}, runnable_cpu_backends().back(), options);
    KvCache cache(config, {.max_context = 64, .max_step_tokens = 1, .num_seqs = 1});
    feed(*executor, plan, cache, random_tokens(config, 3, 1), 1, config.vocab_size);
    const double begin = process_cpu_seconds();
    // The control may share its cores with others: it gets longer to use what an idle executor must not.
    const int max_naps = park_after_us > 200 ? 40 : 1;
    double used = 0.0;
    for (int nap = 0; nap < max_naps && used <= 0.020; ++nap) {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      used = process_cpu_seconds() - begin;
    }
    return used;
  };
  CHECK(idle_seconds(200) < 0.020);
  CHECK(idle_seconds(10'000'000) > 0.020);  // control: workers that never sleep are seen
}

TEST_CASE("tracing lists every task once, in order, and changes no result") {
  const ModelConfig config = small_quantised();
  const Weights weights = Weights::synthetic(config, 5);
  const std::vector<int32_t> tokens = random_tokens(config, 4, 9);
  const Plan plan = Plan::build(config, plan_options(2, 4, 4));
  ExecutorOptions options;
  options.num_workers = 2;
  for (const bool is_ref : {false, true}) {
    const auto executor = is_ref ? make_ref_executor(weights, nullptr, {&plan}, options, false)
                                 : make_cpu_executor(weights, nullptr, {&plan}, runnable_cpu_backends().back(), options);
    KvCache cache(config, {.max_context = 64, .max_step_tokens = 4, .num_seqs = 1});
    const std::vector<float> plain = feed(*executor, plan, cache, tokens, 4, config.vocab_size);
    CHECK(executor->last_trace().empty());
    executor->set_tracing(true);
    CHECK(bit_equal(plain, feed(*executor, plan, cache, tokens, 4, config.vocab_size)));
    const std::vector<TaskTrace> trace = executor->last_trace();
    CHECK_EQ(trace.size(), plan.num_tasks());
    std::vector<uint32_t> next(2);
    std::vector<uint64_t> end_ns(2);
    for (const TaskTrace& task : trace) {
      CHECK_EQ(task.task_idx, next[task.worker_idx]++);
      CHECK(end_ns[task.worker_idx] <= task.wait_begin_ns && task.wait_begin_ns <= task.begin_ns &&
            task.begin_ns <= task.end_ns);
      end_ns[task.worker_idx] = task.end_ns;
    }
  }
}

TEST_CASE("bad steps are refused and leave the executor usable") {
  const ModelConfig config = test_configs::tiny();
  const Weights weights = Weights::synthetic(config, 1);
  const Plan plan = Plan::build(config, plan_options(1, 4, 2));
  ExecutorOptions options;
  options.num_workers = 1;
  const auto executor = make_cpu_executor(weights, nullptr, {&plan}, runnable_cpu_backends().front(), options);
  KvCache cache(config, {.max_context = 64, .max_step_tokens = 4, .num_seqs = 2});
  cache.reserve(0, 4);
  const auto refused = [&](const char* needle, auto change) {
    int32_t ids[] = {1, 2, 3, 4};
    uint32_t seqs[] = {0, 0, 0, 0}, positions[] = {0, 1, 2, 3}, rows[] = {1, 3};
    StepInput input{4, ids, seqs, positions, 2, rows, nullptr};
    change(input, ids, seqs, positions, rows);
    StepOutput output;
    CHECK_THROWS(invalid_argument, needle, executor->run(plan, cache, input, output));
  };
  const auto set_count = [](uint32_t count) {
    return [count](StepInput& in, auto...) { in.num_tokens = count; };
  };
  refused("num_tokens", set_count(0));
  refused("num_tokens", set_count(5));
  refused("num_logit_rows", [](StepInput& in, auto...) { in.num_logit_rows = 3; });
  refused("token_ids[2]", [](StepInput&, int32_t* ids, auto...) { ids[2] = -1; });
  refused("token_ids[0]", [](StepInput&, int32_t* ids, auto...) { ids[0] = 80; });
  refused("seq_idx[1]", [](auto&, auto*, uint32_t* seqs, auto...) { seqs[1] = 2; });
  refused("positions[3]", [](auto&, auto*, auto*, uint32_t* pos, auto*) { pos[3] = 4; });
  refused("consecutive", [](auto&, auto*, auto*, uint32_t* pos, auto*) { pos[1] = 0; });
  refused("logit_rows[1]", [](auto&, auto*, auto*, auto*, uint32_t* rows) { rows[1] = 1; });
  refused("logit_rows[1]", [](auto&, auto*, auto*, auto*, uint32_t* rows) { rows[1] = 4; });
  refused("nullptr", [](StepInput& in, auto...) { in.token_ids = nullptr; });
  CHECK_EQ(feed(*executor, plan, cache, {1, 2}, 2, config.vocab_size).size(), 2u * 80);
}

CHECK_MAIN()
