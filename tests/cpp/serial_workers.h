// The CPU executor's workers on one thread: of those that can go on, the last one does. So it takes over what the
// others of its phase have not begun, every time, and a test can let them begin in any other order.
#pragma once

#include "core/checks.h"
#include "cpu/dispatch.h"
#include "cpu/ops_context.h"
#include "engine/round.h"
#include "plan_mutator.h"
#include "step_fixture.h"

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace fixture {

class SerialWorkers final : public Executor {
 public:
  SerialWorkers(const Weights& weights, const DraftWeights* draft, const std::vector<const Plan*>& plans,
                const std::string& backend, Activations activations = Activations::bf16)
      : backend_(backend), kernels_(cpu::select_kernels(backend, activations)), counting_(kernels_) {
    counting_.gemm = &count_product;
    counting_.prepare = &count_prepared;
    const DraftConfig* draft_config = draft ? &draft->config() : nullptr;
    for (const Plan* plan : plans)
      states_.push_back(std::make_unique<cpu::PlanState>(*plan, weights.config(), draft_config));
    const cpu::ScratchSizes sizes(weights, kernels_, states_, draft);
    for (uint32_t w = 0; w < plans[0]->num_workers(); ++w)
      workers_.push_back(std::make_unique<cpu::Worker>(weights, counting_, sizes, step_, draft));
  }

  bool can_steal = true;
  bool ascends = false;  ///< the first that can go on does
  /// Called before each product of a worker in a task, the first of which is number 0.
  std::function<void(uint32_t worker_idx, const Task& task, uint32_t number)> before_product;

  /// Of one task in the last epoch.
  struct Work {
    uint32_t num_products = 0, num_prepared = 0;  ///< calls
    uint64_t size = 0;                            ///< row groups of matrices times tokens
    cpu::ByteRange announced;                     ///< what would have been fetched before its wait
    const uint8_t* first_read = nullptr;          ///< weights of the first product
  };
  const Work& work(uint32_t worker_idx, uint32_t task_idx) const { return work_[worker_idx][task_idx]; }

  /// Of all tasks.
  uint64_t total_work() const {
    uint64_t sum = 0;
    for (const auto& list : work_)
      for (const Work& work : list) sum += work.size;
    return sum;
  }

  /// Runs tasks of a worker until it would wait. Only for before_product, and no worker that is in a task.
  bool advance(uint32_t worker_idx) {
    bool moves = false;
    while (run_next(worker_idx)) moves = true;
    return moves;
  }

  const std::string& backend_name() const override { return backend_; }
  uint32_t num_workers() const override { return static_cast<uint32_t>(workers_.size()); }

  void run(const Plan& plan, KvCache& cache, const StepInput& input, StepOutput& output) override {
    state_ = &state_of(plan);
    output.logits = input.wants_logits() ? state_->f32_row(kLogits, 0) : nullptr;
    output.logits_stride = state_->stride(kLogits);
    step_ = {state_, &cache, &input, &output, step_.number + 1};
    state_->fill_tables(input, cache);
    next_.assign(num_workers(), 0);
    work_.resize(num_workers());
    for (uint32_t w = 0; w < num_workers(); ++w) {
      work_[w].assign(plan.tasks(w).size(), {});
      workers_[w]->fit_segments(cache);
      workers_[w]->begin_epoch(state_->epoch);
    }
    for (bool moves = true; moves;) {
      moves = false;
      for (uint32_t i = 0; i < num_workers(); ++i) moves |= run_next(ascends ? i : num_workers() - 1 - i);
    }
    for (uint32_t w = 0; w < num_workers(); ++w)
      if (next_[w] < plan.tasks(w).size()) fail(ErrorCode::internal, "SerialWorkers", "stuck");
    ++state_->epoch;
  }

  void run_rounds(const Plan& plan, KvCache& cache, RoundState& rounds, const std::function<void()>& poll) override {
    while (rounds.end == RoundEnd::running) {
      StepOutput output;
      run(plan, cache, rounds.input, output);
      if (poll) poll();
    }
  }

  void set_tracing(bool) override {}
  std::vector<TaskTrace> last_trace() const override { return {}; }
  const uint8_t* buffer_data(const Plan& plan, uint16_t buffer_id) const override {
    return state_of(plan).buffers[buffer_id];
  }

 private:
  cpu::PlanState& state_of(const Plan& plan) const {
    for (const auto& state : states_)
      if (state->plan.tasks(0).data() == plan.tasks(0).data()) return *state;
    fail(ErrorCode::invalid_argument, "SerialWorkers", "another plan");
  }

  bool can_begin(const Task& task) const {
    for (uint32_t i = 0; i < task.num_waits; ++i) {
      const Wait& wait = task.waits[i];
      const uint64_t total = state_->plan.counters()[wait.counter].total;
      if (state_->counters.load(wait.counter) < state_->epoch * total + wait.value) return false;
    }
    return true;
  }

  bool run_next(uint32_t worker_idx) {
    const std::span<const Task> tasks = state_->plan.tasks(worker_idx);
    uint32_t& next = next_[worker_idx];
    if (next == tasks.size() || !can_begin(tasks[next])) return false;
    run_task(worker_idx, next);
    ++next;
    return true;
  }

  void run_task(uint32_t worker_idx, uint32_t task_idx) {
    const Task& task = state_->plan.tasks(worker_idx)[task_idx];
    SerialWorkers* const before = running_;  // within a product of another worker
    const auto worker_before = worker_idx_, task_before = task_idx_;
    running_ = this, worker_idx_ = worker_idx, task_idx_ = task_idx;
    cpu::Worker& worker = *workers_[worker_idx];
    worker.place = can_steal ? state_->stealing.place(worker_idx, task_idx) : cpu::SharedPlace{};
    work_[worker_idx][task_idx].announced = cpu::first_weights(task, task_idx ? &task - 1 : nullptr, worker);
    cpu::run_task(task, worker);
    if (task.signal_counter != kNoCounter) state_->counters.signal(task.signal_counter);
    running_ = before, worker_idx_ = worker_before, task_idx_ = task_before;
  }

  static void count_product(int format, const cpu::GemmArgs& args) {
    SerialWorkers& self = *running_;
    Work& work = self.work_[self.worker_idx_][self.task_idx_];
    const uint32_t number = work.num_products++;
    if (!number) work.first_read = args.weights;
    work.size += uint64_t{args.num_row_groups} * args.num_tokens;
    if (self.before_product)
      self.before_product(self.worker_idx_, self.state_->plan.tasks(self.worker_idx_)[self.task_idx_], number);
    self.kernels_.gemm(format, args);
  }

  static void count_prepared(int format, const cpu::PrepareArgs& args) {
    ++running_->work_[running_->worker_idx_][running_->task_idx_].num_prepared;
    running_->kernels_.prepare(format, args);
  }

  static inline SerialWorkers* running_ = nullptr;

  const std::string backend_;
  const cpu::Kernels& kernels_;
  cpu::Kernels counting_;  // the same
  std::vector<std::unique_ptr<cpu::PlanState>> states_;
  std::vector<std::unique_ptr<cpu::Worker>> workers_;
  cpu::Step step_;
  cpu::PlanState* state_ = nullptr;             // of the epoch that runs
  std::vector<uint32_t> next_;                  // [worker] task
  std::vector<std::vector<Work>> work_;         // [worker][task]
  uint32_t worker_idx_ = 0, task_idx_ = 0;      // that run
};

/// Tasks so long that their tiles are taken in as many parts as there may be.
inline Plan with_small_parts(const Plan& plan) {
  PlanMutator mutator(plan);
  for (auto& list : mutator.lists)
    for (Task& task : list) task.cost_ns = 1'000'000;
  return mutator.finish();
}

/// Tasks that have a place among those that share.
inline uint32_t count_shared(const Plan& plan) {
  const cpu::WorkStealing stealing(plan);
  uint32_t count = 0;
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (uint32_t i = 0; i < plan.tasks(w).size(); ++i) count += stealing.place(w, i).phase != nullptr;
  return count;
}

/// Their kinds.
inline std::set<TaskKind> shared_kinds(const Plan& plan) {
  const cpu::WorkStealing stealing(plan);
  std::set<TaskKind> kinds;
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (uint32_t i = 0; i < plan.tasks(w).size(); ++i)
      if (stealing.place(w, i).phase) kinds.insert(plan.tasks(w)[i].kind);
  return kinds;
}

/// Kinds of which workers did less in the last epoch than their tasks have, because others did it.
inline std::set<TaskKind> kinds_done_by_others(const SerialWorkers& workers, const SerialWorkers& alone,
                                               const Plan& plan) {
  std::set<TaskKind> kinds;
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (uint32_t i = 0; i < plan.tasks(w).size(); ++i)
      if (workers.work(w, i).size < alone.work(w, i).size) kinds.insert(plan.tasks(w)[i].kind);
  return kinds;
}

}  // namespace fixture
