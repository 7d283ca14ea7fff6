// Units of shared tasks: each is run once, whoever runs it, and no result depends on it.
#include "check.h"
#include "draft_run.h"
#include "plan_mutator.h"
#include "serial_workers.h"

#include "cpu/executor.h"
#include "cpu/work_stealing.h"

#include <array>
#include <atomic>
#include <chrono>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace mimo_rt;
using namespace mimo_rt::cpu;
using namespace fixture;

namespace {

/// Of all tokens, fed in steps as large as the plan's.
std::vector<float> logits_of(Executor& executor, const Plan& plan, const ModelConfig& config,
                             const std::vector<int32_t>& tokens) {
  const uint32_t chunk = plan.options().max_tokens;
  KvCache cache(config, {.max_context = 1200, .max_step_tokens = chunk, .num_seqs = 1});
  return feed(executor, plan, cache, tokens, chunk, config.vocab_size);
}

const std::string& backend() {
  static const std::string name = runnable_cpu_backends().back();
  return name;
}

std::vector<float> logits_of(const Weights& weights, const Plan& plan, const std::vector<int32_t>& tokens) {
  const auto executor = make_cpu_executor(weights, nullptr, {&plan}, backend(), {.num_workers = plan.num_workers()});
  return logits_of(*executor, plan, weights.config(), tokens);
}

/// Tasks of a phase for run_shared, each of which has its number of units in tile_end.
struct Phase {
  explicit Phase(const std::vector<uint32_t>& num_units) : tasks(num_units.size()), queues(num_units.size()) {
    for (size_t i = 0; i < tasks.size(); ++i) {
      tasks[i].tile_end = num_units[i];
      shared.parts.push_back({&tasks[i], &queues[i]});
    }
  }
  template <typename Run>
  void run(uint32_t idx, uint64_t epoch, const Run& run_units) {
    run_shared({&shared, idx}, tasks[idx], epoch, [](const Task& task) { return task.tile_end; }, run_units);
  }
  size_t idx_of(const Task& task) const { return static_cast<size_t>(&task - tasks.data()); }

  std::vector<Task> tasks;
  std::vector<UnitQueue> queues;
  SharedPhase shared;
};

/// Runs work(idx) on so many threads.
template <typename Work>
void on_threads(uint32_t num_threads, const Work& work) {
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < num_threads; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
}

/// Whether `condition` comes true within a time that only a hang takes.
template <typename Condition>
bool comes_true(const Condition& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

/// The first worker begins its tasks when the others have done theirs, or has taken some of its units before.
enum class First { is_late, is_held_up };

void set_first(SerialWorkers& workers, First first) {
  workers.ascends = first == First::is_held_up;
  if (first == First::is_late) return;
  workers.before_product = [&workers](uint32_t w, const Task&, uint32_t number) {
    for (uint32_t other = workers.num_workers(); w == 0 && number == 0 && --other;) workers.advance(other);
  };
}

/// Kernels in whose products, but for those of experts, whoever has taken the first rows waits until others have done
/// all the rest: what the first worker's task has beyond the first rows has been done by others then.
struct HeldUp {
  struct Matrix {
    const PackedMatrix* packed = nullptr;
    uint32_t num_own = 0;               ///< row groups of the first worker's task
    std::atomic<uint32_t> num_done{0};  ///< row groups of this step, the first call's not counted
  };

  HeldUp(const Weights& weights, const Plan& plan) : usual(cpu::select_kernels(backend())), kernels(usual) {
    for (const Task& task : plan.tasks(0))
      if (const PackedMatrix* matrix = matrix_of(weights, task)) {
        Matrix& added = matrices.emplace_back();
        added.packed = matrix;
        added.num_own = (task.tile_end - task.tile_first) * (task.kind == TaskKind::gate_up_proj ? 2 : 1);
      }
    kernels.gemm = &multiply;
    current = this;
  }
  ~HeldUp() { current = nullptr; }

  static const PackedMatrix* matrix_of(const Weights& weights, const Task& task) {
    switch (task.kind) {
      case TaskKind::qkv_proj: return &weights.layer(task.layer_idx).qkv;
      case TaskKind::o_proj: return &weights.layer(task.layer_idx).o_proj;
      case TaskKind::gate_up_proj: return &weights.layer(task.layer_idx).gate_up;
      case TaskKind::down_proj: return &weights.layer(task.layer_idx).down;
      case TaskKind::lm_head: return &weights.lm_head();
      default: return nullptr;
    }
  }

  static void multiply(int format, const GemmArgs& args) {
    for (Matrix& matrix : current->matrices) {
      const uint8_t* begin = matrix.packed->row_group(0);
      const uint32_t num_groups = matrix.packed->num_row_groups(), num_taken = args.num_row_groups;
      if (args.weights < begin || args.weights >= begin + matrix.packed->bytes()) continue;
      if (args.weights != begin) {
        current->usual.gemm(format, args);
        matrix.num_done += num_taken;
        return;
      }
      if (!comes_true([&] { return matrix.num_done == num_groups - num_taken; })) ++current->num_hangs;
      matrix.num_done = 0;
      current->num_stolen += matrix.num_own - num_taken;
    }
    current->usual.gemm(format, args);
  }

  static inline HeldUp* current = nullptr;
  const Kernels& usual;
  Kernels kernels;
  std::deque<Matrix> matrices;
  std::atomic<uint32_t> num_stolen{0}, num_hangs{0};
};

}  // namespace

TEST_CASE("every unit is run once in every epoch, by whoever takes it") {
  constexpr uint32_t kNumThreads = 3, kNumEpochs = 400;
  Phase phase({37, 1, 64});
  std::vector<std::atomic<uint32_t>> runs(kNumEpochs * 3);
  std::atomic<uint32_t> arrived{0};
  on_threads(kNumThreads, [&](uint32_t idx) {
    for (uint32_t epoch = 0; epoch < kNumEpochs; ++epoch) {
      phase.run(idx, epoch, [&](const Task& task, uint32_t begin, uint32_t end) {
        runs[epoch * 3 + phase.idx_of(task)] += end - begin;
        if (idx == 0) std::this_thread::yield();  // the slow one
      });
      ++arrived;
      while (arrived < kNumThreads * (epoch + 1)) std::this_thread::yield();
    }
  });
  for (uint32_t i = 0; i < runs.size(); ++i) CHECK_EQ(runs[i].load(), phase.tasks[i % 3].tile_end);
}

TEST_CASE("all but what a worker has taken is done by others while it is held up, as units of its task") {
  constexpr uint32_t kNumThreads = 3;
  Phase phase({37, 8, 8});
  std::atomic<uint32_t> num_done{0};
  std::atomic<bool> is_held{false};
  std::vector<std::vector<std::atomic<uint32_t>>> ran_by(3);  // [task][unit] 1 + thread
  for (auto& units : ran_by) units = std::vector<std::atomic<uint32_t>>(37);
  std::atomic<bool> was_late{true};
  on_threads(kNumThreads, [&](uint32_t idx) {
    if (idx && !comes_true([&] { return is_held.load(); })) was_late = false;
    phase.run(idx, 0, [&](const Task& task, uint32_t begin, uint32_t end) {
      is_held = true;
      if (idx == 0 && !comes_true([&] { return num_done == kNumThreads - 1; })) was_late = false;
      for (uint32_t unit = begin; unit < end; ++unit) ran_by[phase.idx_of(task)][unit] += 1 + idx;
    });
    ++num_done;
  });
  CHECK(was_late);
  for (uint32_t unit = 0; unit < 37; ++unit) CHECK_EQ(ran_by[0][unit] == 1, unit < 10);  // a quarter, rounded up
  for (size_t t = 1; t < 3; ++t)
    for (uint32_t unit = 0; unit < 8; ++unit) CHECK(ran_by[t][unit] == 2 || ran_by[t][unit] == 3);
}

TEST_CASE("a quarter of what is left is taken, from the front or from the back") {
  UnitQueue queue;
  const auto takes = [&](bool from_front, uint32_t begin, uint32_t end) {
    const UnitRange range = queue.take(0, 16, from_front);
    CHECK_EQ(range.begin, begin);
    CHECK_EQ(range.end, end);
  };
  takes(true, 0, 4), takes(false, 13, 16), takes(false, 10, 13), takes(true, 4, 6), takes(true, 6, 7);
  takes(false, 9, 10), takes(true, 7, 8), takes(true, 8, 9);
  CHECK(queue.take(0, 16, true).is_empty() && queue.take(0, 16, false).is_empty());
  UnitQueue full;
  uint32_t sum = 0;
  for (UnitRange range; !(range = full.take(7, UnitQueue::kMaxUnits, sum % 2)).is_empty();)
    sum += range.end - range.begin;
  CHECK_EQ(sum, UnitQueue::kMaxUnits);
}

TEST_CASE("what an epoch left is forgotten in the next, also where its number does not fit the stamp") {
  constexpr uint64_t kWrap = 1ull << 32;
  UnitQueue queue;
  CHECK_EQ(queue.take(5, 8, true).end, 2u);
  for (const uint64_t epoch : {uint64_t{6}, 6 + (kWrap >> 1), kWrap - 2, kWrap - 1, kWrap, kWrap + 1, 3 * kWrap}) {
    CHECK_EQ(queue.take(epoch, 8, false).begin, 6u);
    CHECK_EQ(queue.take(epoch, 0, true).end, 2u);  // six units are left of the eight
    CHECK_EQ(queue.take(epoch, 8, true).end, 3u);
  }
  // A queue that nobody has used yet is of no epoch, whatever its stamp.
  for (const uint64_t epoch : {kWrap - 2, kWrap - 1, kWrap, 5 * kWrap - 1}) {
    UnitQueue fresh;
    CHECK_EQ(fresh.take(epoch, 8, true).end, 2u);
  }
}

TEST_CASE("own units come first, from the front, then those of others, from the back") {
  Phase phase({3, 6});
  std::vector<std::array<uint32_t, 3>> ran, expected = {{1, 0, 2}, {1, 2, 3}, {1, 3, 4}, {1, 4, 5}, {1, 5, 6},
                                                        {0, 2, 3}, {0, 1, 2}, {0, 0, 1}};
  const auto run = [&](const Task& task, uint32_t begin, uint32_t end) {
    ran.push_back({static_cast<uint32_t>(phase.idx_of(task)), begin, end});
  };
  phase.run(1, 0, run);
  phase.run(0, 0, run);
  CHECK(ran == expected);
}

TEST_CASE("who has more units than a queue holds runs them alone") {
  Phase phase({UnitQueue::kMaxUnits + 1, 4});
  std::vector<uint32_t> runs(2);
  const auto run = [&](const Task& task, uint32_t begin, uint32_t end) { runs[phase.idx_of(task)] += end - begin; };
  phase.run(1, 0, run);
  CHECK(runs[0] == 0 && runs[1] == 4);
  phase.run(0, 0, run);
  CHECK(runs[0] == UnitQueue::kMaxUnits + 1 && runs[1] == 4);
}

TEST_CASE("results do not depend on who computes what, no product is made twice, and who has none prepares none") {
  for (const ModelConfig& config :
       {small_quantised(), test_configs::tiny_ragged_tied(), test_configs::tiny_all_dense()}) {
    const Weights weights = Weights::synthetic(config, 11);
    const std::vector<int32_t> tokens = random_tokens(config, 40, 3);
    const std::vector<float> expected = logits_of(weights, Plan::build(config, plan_options(1, 8, 8)), tokens);
    for (const uint32_t num_workers : {2u, 3u, 4u}) {
      const Plan plan = with_small_parts(Plan::build(config, plan_options(num_workers, 8, 8)));
      SerialWorkers alone(weights, nullptr, {&plan}, backend());
      alone.can_steal = false;
      CHECK(bit_equal(logits_of(alone, plan, config, tokens), expected));
      for (const First first : {First::is_late, First::is_held_up}) {
        SerialWorkers workers(weights, nullptr, {&plan}, backend());
        set_first(workers, first);
        CHECK(bit_equal(logits_of(workers, plan, config, tokens), expected));
        CHECK(kinds_done_by_others(workers, alone, plan) == shared_kinds(plan));
        CHECK_EQ(workers.total_work(), alone.total_work());
        if (first == First::is_held_up) continue;
        for (uint32_t i = 0; i < plan.tasks(0).size(); ++i)
          if (shared_kinds(plan).contains(plan.tasks(0)[i].kind))
            CHECK(!workers.work(0, i).size && !workers.work(0, i).num_prepared);
      }
    }
  }
}

TEST_CASE("tasks of one op may cut experts into different shares: units are those of their own task") {
  const ModelConfig config = small_quantised();  // six pairs
  const Weights weights = Weights::synthetic(config, 11);
  const std::vector<int32_t> tokens = random_tokens(config, 24, 3);
  PlanMutator mutator(Plan::build(config, plan_options(3, 8, 8)));
  for (uint32_t w = 0; w < 3; ++w)  // halves; the third and the fourth quarter
    for (Task& task : mutator.lists[w])
      if (task.kind == TaskKind::expert_gate_up)
        task.tile_first = w ? w + 1 : 0, task.tile_stride = task.tile_end = w ? 4 : 2;
  const Plan plan = with_small_parts(mutator.finish());
  plan.verify();
  CHECK(shared_kinds(plan).contains(TaskKind::expert_gate_up));
  const std::vector<float> expected = logits_of(weights, Plan::build(config, plan_options(1, 8, 8)), tokens);
  for (const First first : {First::is_late, First::is_held_up}) {
    SerialWorkers workers(weights, nullptr, {&plan}, backend());
    set_first(workers, first);
    CHECK(bit_equal(logits_of(workers, plan, config, tokens), expected));
  }
}

TEST_CASE("results of threads do not depend on who computes what") {
  const ModelConfig config = small_quantised();
  const Weights weights = Weights::synthetic(config, 11);
  const std::vector<int32_t> tokens = random_tokens(config, 40, 3);
  const std::vector<float> expected = logits_of(weights, Plan::build(config, plan_options(1, 8, 8)), tokens);
  for (const uint32_t num_workers : {2u, 3u, 4u}) {
    const Plan plan = with_small_parts(Plan::build(config, plan_options(num_workers, 8, 8)));
    CHECK(bit_equal(logits_of(weights, plan, tokens), expected));
    HeldUp held_up(weights, plan);
    ExecutorOptions options;
    options.num_workers = num_workers;
    CpuExecutor executor(weights, nullptr, {&plan}, backend(), held_up.kernels, options);
    CHECK(bit_equal(logits_of(executor, plan, config, tokens), expected));
    CHECK_EQ(held_up.num_hangs.load(), 0u);
    CHECK(held_up.num_stolen > 0);
  }
}

TEST_CASE("rounds of a draft do not depend on who computes what") {
  for (const DraftStyle& style : draft_styles(5)) {
    const DraftModel model(style);
    const std::vector<int32_t> tokens = random_tokens(style.config, 27, 3);
    const auto decode = [&](const auto& change_workers) {
      DraftRunOptions options;
      options.backend = backend();
      options.num_workers = 3;
      options.change_step_plan = options.change_round_plan = with_small_parts;
      DraftRun run(model.weights, model.draft, options);
      auto workers = std::make_unique<SerialWorkers>(model.weights, &model.draft,
                                                     std::vector<const Plan*>{&run.step_plan, &run.round_plan},
                                                     backend());
      change_workers(*workers);
      const SerialWorkers& ran = *workers;
      run.executor = std::move(workers);
      const std::vector<int32_t> made = run.decode_rounds(run.feed(tokens), 12);
      std::vector<float> numbers(made.begin(), made.end());
      for (const float logit : run.draft_logits()) numbers.push_back(logit);
      uint64_t first_work = 0;
      for (uint32_t i = 0; i < run.round_plan.tasks(0).size(); ++i) first_work += ran.work(0, i).size;
      return std::pair(numbers, first_work);
    };
    const auto alone = decode([](SerialWorkers& workers) { workers.can_steal = false; });
    for (const First first : {First::is_late, First::is_held_up}) {
      const auto shared = decode([&](SerialWorkers& workers) { set_first(workers, first); });
      CHECK(bit_equal(shared.first, alone.first));
      CHECK(shared.second < alone.second);
    }
  }
}

// An expert's rows fit the scratch many times over, because the hidden size is large and the experts are narrow, but
// not the results of so many.
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
