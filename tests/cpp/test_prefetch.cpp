// What a worker fetches while it waits is what its task reads first.
#include "check.h"
#include "cpu/counters.h"
#include "serial_workers.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

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

#if defined(__SSE2__)
/// 64 KiB as a path through all cache lines in random order, so that nothing can guess the next one.
class Lines {
 public:
  Lines() : lines_(1024) {
    std::vector<uint32_t> order(lines_.size());
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), std::mt19937(3));
    for (size_t i = 0; i < order.size(); ++i)
      lines_[order[i]].next = &lines_[order[(i + 1) % order.size()]];
  }

  /// Out of all caches.
  void flush() const {
    for (const Line& line : lines_) _mm_clflush(&line);
    _mm_mfence();
  }

  /// How long the path takes, in ns.
  double walk() const {
    const auto begin = std::chrono::steady_clock::now();
    const Line* volatile line = &lines_[0];
    for (size_t i = 0; i < lines_.size(); ++i) line = line->next;
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count();
  }

  const uint8_t* begin() const { return reinterpret_cast<const uint8_t*>(lines_.data()); }
  const uint8_t* end() const { return begin() + lines_.size() * sizeof(Line); }

 private:
  struct alignas(64) Line {
    const Line* next;
  };
  std::vector<Line> lines_;
};

/// Waits for another thread's signal, 1 ms or more, with `begin` to `end` to fetch meanwhile.
void wait_with(const uint8_t* begin, const uint8_t* end) {
  cpu::Counters counters(1);
  cpu::WaitMonitor monitor(1, 60'000, 10'000'000);
  const std::jthread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    counters.signal(0);
  });
  CHECK(monitor.wait(counters, {0, 0, 0, 1, begin, end}));
}
#endif

}  // namespace

#if defined(__SSE2__)
TEST_CASE("who waits has the announced bytes in a cache afterwards") {
  const Lines lines;
  double cold = std::numeric_limits<double>::infinity(), fetched = cold;
  // On a shared machine somebody may take the cache or the core: the best of some tries counts.
  for (uint32_t i = 0; i < 100 && (i < 5 || fetched * 3 > cold); ++i) {
    lines.flush();
    wait_with(nullptr, nullptr);
    cold = std::min(cold, lines.walk());
    lines.flush();
    wait_with(lines.begin(), lines.end());
    fetched = std::min(fetched, lines.walk());
  }
  CHECK(fetched * 3 < cold);
}
#endif

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
