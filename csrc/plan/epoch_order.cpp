#include "plan/epoch_order.h"

#include "core/checks.h"
#include "plan/kinds.h"
#include "plan/task.h"

#include <algorithm>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Plan.verify";

std::span<const Wait> waits_of(const Task& task) { return {task.waits, task.num_waits}; }

}  // namespace

EpochOrder::EpochOrder(const Plan& plan) : plan_(plan), counters_(plan.counters().size()) {
  const Clock zero(plan.num_workers(), 0);
  clocks_.assign(plan.num_workers(), zero);
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w))
      for (const Wait& wait : waits_of(task))
        if (wait.value && wait.value < plan.counters()[wait.counter].total)
          counters_[wait.counter].num_signals.assign(plan.num_workers(), 0);
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w)) {
      if (task.signal_counter == kNoCounter) continue;
      Counter& counter = counters_[task.signal_counter];
      if (counter.keeps_signals()) ++counter.num_signals[w];
    }
}

bool EpochOrder::ready(const Task& task) const {
  for (const Wait& wait : waits_of(task))
    if (counters_[wait.counter].count < wait.value) return false;
  return true;
}

void EpochOrder::join_guaranteed(const Counter& counter, uint32_t total, uint32_t value,
                                 Clock& clock) const {
  // All signals of the epoch count, not only those visited so far: what comes later here may come
  // earlier in another run, and make up for a signal that is missing there.
  std::vector<uint32_t> left = counter.num_signals;  // of each worker, the signal at hand included
  for (const Counter::Signal& signal : counter.signals) {
    const uint32_t m = left[signal.worker_idx]--;
    if (total - m < value) join(clock, signal.clock);
  }
}

void EpochOrder::absorb_waits(const Task& task, Clock& clock) const {
  for (const Wait& wait : waits_of(task)) {
    const CounterInfo& info = plan_.counters()[wait.counter];
    if (wait.value == 0 || info.kind == CounterInfo::Kind::tag) continue;  // earlier epochs only, or words only
    const Counter& counter = counters_[wait.counter];
    const uint32_t total = info.total;
    if (wait.value == total) join(clock, counter.all);
    else join_guaranteed(counter, total, wait.value, clock);
  }
}

void EpochOrder::signal(const Task& task, uint32_t worker_idx, const Clock& after) {
  Counter& counter = counters_[task.signal_counter];
  ++counter.count;
  if (counter.all.empty()) counter.all = after;
  else join(counter.all, after);
  if (counter.keeps_signals()) counter.signals.push_back({worker_idx, after});
}

void EpochOrder::run(const Visit& visit) {
  std::vector<uint32_t> next(plan_.num_workers(), 0);
  bool moved = true;
  while (moved) {
    moved = false;
    for (uint32_t w = 0; w < plan_.num_workers(); ++w) {
      const std::span<const Task> list = plan_.tasks(w);
      for (; next[w] < list.size() && ready(list[next[w]]); ++next[w]) {
        const Task& task = list[next[w]];
        Clock& clock = clocks_[w];
        absorb_waits(task, clock);
        visit(w, next[w], clock);
        clock[w] = next[w] + 1;
        if (task.signal_counter != kNoCounter) signal(task, w, clock);
        moved = true;
      }
    }
  }
  for (uint32_t w = 0; w < plan_.num_workers(); ++w)
    if (next[w] < plan_.tasks(w).size()) report_stuck(next);
}

void EpochOrder::report_stuck(const std::vector<uint32_t>& next) const {
  for (uint32_t w = 0; w < plan_.num_workers(); ++w) {
    if (next[w] == plan_.tasks(w).size()) continue;
    for (const Wait& wait : waits_of(plan_.tasks(w)[next[w]]))
      if (counters_[wait.counter].count < wait.value)
        fail(ErrorCode::plan_invalid, kWhere, task_name(plan_, w, next[w]), " can never start: expected counter '",
             plan_.counters()[wait.counter].name, "' to reach ", wait.value, ", got ", counters_[wait.counter].count,
             " when nothing else can run");
  }
  fail(ErrorCode::internal, kWhere, "stuck without a wait");
}

void EpochOrder::check_gate() const {
  const Clock& gate_clock = counters_[plan_.gate_counter()].all;
  MIMO_RT_CHECK(!gate_clock.empty(), plan_invalid, kWhere, "no task signals the gate counter '",
                plan_.counters()[plan_.gate_counter()].name, '\'');
  for (uint32_t w = 0; w < plan_.num_workers(); ++w) {
    const std::span<const Task> list = plan_.tasks(w);
    if (list.empty()) continue;
    const uint32_t last = static_cast<uint32_t>(list.size()) - 1;
    MIMO_RT_CHECK(gate_clock[w] > last, plan_invalid, kWhere, task_name(plan_, w, last),
                  " may still run when the gate opens the next epoch: expected the gate's signal after it");
    const auto is_gated = [&](const Wait& wait) {
      if (wait.value == 0) return wait.counter == plan_.gate_counter();
      return plan_.counters()[wait.counter].kind == CounterInfo::Kind::counter;
    };
    MIMO_RT_CHECK(std::ranges::any_of(waits_of(list[0]), is_gated), plan_invalid, kWhere, task_name(plan_, w, 0),
                  " is the first of its worker: expected a wait for the gate counter with value 0, or for a counter's ",
                  "signals of its own epoch, or it may start before the previous epoch has ended");
  }
}

}  // namespace mimo_rt
