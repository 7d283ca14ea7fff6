// Time stamps that the kernel takes of its tasks, on the emulated GPU (or a real one): every task once, edges and weights
// where they should show, the last round of many, no result changed.
#include "cuda/trace_buffer.h"
#include "device_engine_fixture.h"
#include "plan_mutator.h"

#include <nlohmann/json.hpp>

#include <algorithm>

using namespace mimo_rt;
using namespace fixture;

namespace {

using Trace = std::vector<TaskTrace>;

Plan make_plan(uint32_t num_workers) { return Plan::build(model().config, device_plan_options(num_workers, 4, 4)); }

/// One step with stamps; its logits.
struct TracedStep {
  std::vector<float> logits;
  Trace trace;

  explicit TracedStep(const Plan& plan, uint64_t seed, bool is_tracing = true) {
    StepRunner runner(model(), plan, 1, seed);
    const Tokens tokens = random_tokens(model().config, 4, 5);
    const StepRows rows(tokens, 0, 0, 4);
    runner.executor->set_tracing(is_tracing);
    CHECK(runner.run(rows.input));
    logits.assign(runner.logits(0), runner.logits(0) + uint64_t{4} * runner.output.logits_stride);
    trace = runner.executor->last_trace();
  }
};

const Task& task_of(const Plan& plan, const TaskTrace& times) { return plan.tasks(times.worker_idx)[times.task_idx]; }

/// Every task once, in order; the parts of a worker's time follow each other without a hole.
void check_whole(const Plan& plan, const Trace& trace) {
  CHECK_EQ(trace.size(), plan.num_tasks());
  std::vector<uint32_t> next(plan.num_workers());
  std::vector<uint64_t> end_ns(plan.num_workers());
  uint64_t first_ns = ~uint64_t{0};
  for (const TaskTrace& task : trace) {
    const uint32_t w = task.worker_idx;
    CHECK(task.task_idx == 0 || task.wait_begin_ns == end_ns[w]);
    CHECK(task.wait_begin_ns + task.fetch_ns <= task.begin_ns && task.begin_ns + task.weights_ns <= task.end_ns);
    CHECK_EQ(task.task_idx, next[w]++);
    end_ns[w] = task.end_ns;
    first_ns = std::min(first_ns, task.wait_begin_ns);
  }
  CHECK_EQ(first_ns, 0u);
}

/// Waits of `plan` that a trace does not respect: too few of those waited for had ended. Words of a tag edge may be there
/// before their producer takes its last stamp.
uint32_t num_early(const Plan& plan, const Trace& trace) {
  std::vector<std::vector<uint64_t>> ends(plan.counters().size());
  for (const TaskTrace& times : trace)
    if (const Task& task = task_of(plan, times); task.signal_counter != kNoCounter)
      ends[task.signal_counter].push_back(
          plan.counters()[task.signal_counter].kind == CounterInfo::Kind::tag ? times.begin_ns : times.end_ns);
  uint32_t count = 0;
  for (const TaskTrace& times : trace) {
    const Task& task = task_of(plan, times);
    for (uint32_t i = 0; i < task.num_waits; ++i)
      count += std::ranges::count_if(ends[task.waits[i].counter],
                                     [&](uint64_t end_ns) { return end_ns <= times.begin_ns; }) < task.waits[i].value;
  }
  return count;
}

Trace last_trace(const Engine& engine) { return const_cast<Engine&>(engine).impl().executor->last_trace(); }

}  // namespace

TEST_CASE("stamps: every task once, after what it waits for; no bit of the result changes") {
  for (uint64_t seed = 0; seed <= 3; ++seed) {
    const Plan plan = make_plan(3);
    const TracedStep traced(plan, seed), plain(plan, seed, false);
    check_whole(plan, traced.trace);
    CHECK_EQ(num_early(plan, traced.trace), 0u);
    CHECK(plain.trace.empty());
    CHECK(bit_equal(traced.logits, plain.logits));
  }
}

#if !defined(MIMO_RT_TEST_ON_GPU)  // what it reads may be anything
TEST_CASE("a task that does not wait for its inputs shows in the stamps") {
  const Plan plan = make_plan(3);
  const Plan hasty = without_waits(plan, TaskKind::o_proj);
  uint32_t count = 0;
  for (uint64_t seed = 1; seed <= 3; ++seed) count += num_early(plan, TracedStep(hasty, seed).trace);
  CHECK(count != 0);
}
#endif

TEST_CASE("waits for weights are those of tasks that stream them") {
  uint64_t weights_ns = 0, others_ns = 0, waits_ns = 0;
  const Plan plan = make_plan(2);
  for (const TaskTrace& times : TracedStep(plan, 7).trace) {
    const TaskKind kind = task_of(plan, times).kind;
    const bool has_none = kind == TaskKind::embed || kind == TaskKind::rms_norm || kind == TaskKind::select_experts ||
                          kind == TaskKind::sample;
    (has_none ? others_ns : weights_ns) += times.weights_ns;
    waits_ns += times.begin_ns - times.wait_begin_ns - times.fetch_ns;
  }
  CHECK(weights_ns != 0);
  CHECK_EQ(others_ns, 0u);
  CHECK(waits_ns != 0);
}

TEST_CASE("what stamps say of a task: from the end of the one before, the parts in order, also when clocks are coarse") {
  const Plan plan = make_plan(1);
  std::vector<cuda::TaskStamps> stamps(plan.num_tasks());
  const auto set = [&](size_t i, uint64_t fetched_ns, uint64_t begin_ns, uint64_t end_ns, uint32_t ring_ns) {
    stamps[i] = {.fetched_ns = fetched_ns, .begin_ns = begin_ns, .end_ns = {}, .ring_ns = {}};
    for (uint32_t warp = 0; warp < cuda::kComputeWarps; ++warp) {
      stamps[i].end_ns[warp] = end_ns - warp;
      stamps[i].ring_ns[warp] = warp % 2 ? ring_ns : 0;
    }
  };
  for (size_t i = 0; i < stamps.size(); ++i) set(i, 5000, 5000, 5000, 0);
  set(0, 1000, 1100, 1500, 200);
  set(1, 1700, 1800, 2000, 0);   // its word came late
  set(2, 1600, 1900, 2600, 9000);  // begins before the one before ends, waits for longer than it takes
  const Trace trace = cuda::read_stamps(plan, stamps);
  const auto check = [&](size_t i, uint64_t wait_begin, uint64_t fetch, uint64_t begin, uint64_t end, uint64_t weights) {
    CHECK_EQ(trace[i].wait_begin_ns, wait_begin);
    CHECK_EQ(trace[i].fetch_ns, fetch);
    CHECK_EQ(trace[i].begin_ns, begin);
    CHECK_EQ(trace[i].end_ns, end);
    CHECK_EQ(trace[i].weights_ns, weights);
  };
  check(0, 0, 0, 100, 500, 100);
  check(1, 500, 200, 800, 1000, 0);
  check(2, 1000, 0, 1000, 1600, 600);
  check_whole(plan, trace);
}

TEST_CASE("a session's trace is of its last round, drawn with its waits; the tokens are the same") {
  const auto device = open_test_device(), other_device = open_test_device();
  const auto engine = open_engine(device), other = open_engine(other_device);
  const Tokens prompt = random_tokens(model().config, 5, 1);
  engine->set_tracing(true);
  const auto run = [&](const std::shared_ptr<Engine>& on, uint32_t num_tokens) {
    Session session(on, kSmall);
    return session.generate(prompt, greedy(num_tokens)).token_ids;
  };
  const auto length = [&] {
    uint64_t end_ns = 0;
    for (const TaskTrace& times : last_trace(*engine)) end_ns = std::max(end_ns, times.end_ns);
    return end_ns;
  };
  (void)run(engine, 2);
  check_whole(*engine->impl().round_plan, last_trace(*engine));
  [[maybe_unused]] const uint64_t one_round_ns = length();
  CHECK(run(engine, 8) == run(other, 8));  // seven rounds in a launch
  check_whole(*engine->impl().round_plan, last_trace(*engine));
#if !defined(MIMO_RT_TEST_ON_GPU)  // a round of emulated time; a real one may be held up
  CHECK(length() < 2 * one_round_ns);
#endif
  uint64_t num_tasks = 0, num_waits = 0;
  const auto drawn = nlohmann::json::parse(engine->trace_json());
  for (const auto& event : drawn["traceEvents"]) {
    if (event["ph"] != "X" || event["pid"] != 1) continue;
    const std::string category = event["cat"];
    num_waits += category == "wait";
    num_tasks += category != "wait" && category != "fetch";
  }
  CHECK_EQ(num_tasks, engine->impl().round_plan->num_tasks());
  CHECK(num_waits != 0);
  engine->set_tracing(false);
  CHECK(last_trace(*engine).empty());
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("stamps need memory, which is asked for and comes back; a step that fails leaves none") {
  const auto device = open_test_device();
  const auto engine = open_engine(device);
  const uint64_t left = device->free_bytes_left;
  device->free_bytes_left = 1000;
  CHECK_THROWS(out_of_memory, "time stamps of tasks: expected", engine->set_tracing(true));
  device->free_bytes_left = left;
  engine->set_tracing(true);
  CHECK(device->free_bytes_left < left);
  Session session(engine, kSmall);
  const Tokens prompt = random_tokens(model().config, 3, 1);
  session.generate(prompt, greedy(2));
  CHECK(!last_trace(*engine).empty());
  device->loss = "an illegal address";
  CHECK_THROWS(device_lost, "an illegal address", session.generate(prompt, greedy(2)));
  CHECK(last_trace(*engine).empty());
  engine->set_tracing(false);
  engine->set_tracing(true);
  engine->set_tracing(true);
  engine->set_tracing(false);
}
#endif

CHECK_MAIN()
