// Runs a plan's tasks one after the other, in an order that its counters allow.
//
// Workers take turns; one whose next task must wait is skipped. When nobody can go on, the plan
// itself is wrong.
#include "core/checks.h"
#include "engine/step.h"
#include "plan/buffers.h"
#include "ref/ops.h"
#include "ref/storage.h"

#include <chrono>
#include <span>

namespace mimo_rt {
namespace {

using Clock = std::chrono::steady_clock;

struct PlanState {
  PlanState(const Plan& given, bool exact) : plan(given), buffers(given, exact) {
    counters.resize(given.counters().size());
  }
  Plan plan;
  ref::Buffers buffers;
  std::vector<uint64_t> counters;
  uint64_t epoch = 0;
};

class RefExecutor final : public Executor {
 public:
  RefExecutor(const Weights& weights, const std::vector<const Plan*>& plans,
              const ExecutorOptions& options, bool exact)
      : config_(weights.config()),
        num_workers_(options.num_workers ? options.num_workers : 1),
        exact_(exact),
        kv_(weights.config(), exact),
        ops_(weights, exact) {
    for (const Plan* plan : plans) states_.push_back(std::make_unique<PlanState>(*plan, exact));
  }

  const std::string& backend_name() const override { return name_; }
  uint32_t num_workers() const override { return num_workers_; }
  void run(const Plan& plan, KvCache& cache, const StepInput& input, StepOutput& output) override;
  void set_tracing(bool on) override {
    is_tracing_ = on;
    trace_.clear();
  }
  std::vector<TaskTrace> last_trace() const override { return trace_; }
  const uint8_t* buffer_data(const Plan& plan, uint16_t buffer_id) const override {
    return state_of(plan).buffers.data(buffer_id);
  }

 private:
  PlanState& state_of(const Plan& plan) const;
  void run_tasks(PlanState& state, const ref::Step& step);
  bool is_ready(const PlanState& state, const Task& task) const;
  void run_task(PlanState& state, const ref::Step& step, uint32_t worker_idx, uint32_t task_idx);
  void copy_logits(const PlanState& state, const StepInput& input, uint32_t stride);

  const ModelConfig& config_;
  const std::string name_ = "ref";
  uint32_t num_workers_;
  bool exact_;
  ref::KeyValues kv_;
  ref::Ops ops_;
  StepChecker checker_;
  std::vector<std::unique_ptr<PlanState>> states_;
  std::vector<float> float_logits_;  // exact mode: the caller's FP32 view
  bool is_tracing_ = false;
  Clock::time_point step_begin_;
  std::vector<TaskTrace> trace_;
};

PlanState& RefExecutor::state_of(const Plan& plan) const {
  for (const auto& state : states_)  // copies of a plan share their tasks
    if (state->plan.tasks(0).data() == plan.tasks(0).data()) return *state;
  fail(ErrorCode::invalid_argument, "Executor.run",
       "plan: expected one of those given to the executor, got another");
}

void RefExecutor::run(const Plan& plan, KvCache& cache, const StepInput& input,
                      StepOutput& output) {
  PlanState& state = state_of(plan);
  checker_.check(config_, plan, cache, input, output);
  const BufferInfo& logits = plan.buffers()[kLogits];
  output.logits_stride = logits.cols;
  output.active_experts = 0;
  float_logits_.resize(exact_ ? uint64_t{logits.rows} * logits.cols : 0);
  output.logits = exact_ ? float_logits_.data()
                         : reinterpret_cast<const float*>(state.buffers.data(kLogits));
  kv_.select(cache);
  step_begin_ = Clock::now();
  trace_.clear();
  try {
    run_tasks(state, {&state.plan, &state.buffers, &kv_, &input, &output});
  } catch (...) {  // as if the step had never begun
    for (uint64_t c = 0; c < state.counters.size(); ++c)
      state.counters[c] = state.epoch * state.plan.counters()[c].total;
    throw;
  }
  ++state.epoch;
}

bool RefExecutor::is_ready(const PlanState& state, const Task& task) const {
  for (uint32_t i = 0; i < task.num_waits; ++i) {
    const Wait& wait = task.waits[i];
    const uint64_t total = state.plan.counters()[wait.counter].total;
    if (state.counters[wait.counter] < state.epoch * total + wait.value) return false;
  }
  return true;
}

void RefExecutor::run_task(PlanState& state, const ref::Step& step, uint32_t worker_idx,
                           uint32_t task_idx) {
  const auto now_ns = [&] {
    return static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - step_begin_).count());
  };
  const Task& task = state.plan.tasks(worker_idx)[task_idx];
  const uint64_t begin_ns = is_tracing_ ? now_ns() : 0;
  if (exact_ && task.kind == TaskKind::sample)
    copy_logits(state, *step.input, step.output->logits_stride);
  ops_.run(task, step);
  if (task.signal_counter != kNoCounter) ++state.counters[task.signal_counter];
  if (is_tracing_) trace_.push_back({worker_idx, task_idx, begin_ns, begin_ns, now_ns()});
}

void RefExecutor::run_tasks(PlanState& state, const ref::Step& step) {
  const Plan& plan = state.plan;
  std::vector<uint32_t> next(plan.num_workers());
  for (bool is_done = false; !is_done;) {
    is_done = true;
    bool has_progress = false;
    for (uint32_t w = 0; w < plan.num_workers(); ++w) {
      if (next[w] == plan.tasks(w).size()) continue;
      is_done = false;
      if (!is_ready(state, plan.tasks(w)[next[w]])) continue;
      run_task(state, step, w, next[w]++);
      has_progress = true;
    }
    if (is_done || has_progress) continue;
    for (uint32_t w = 0; w < plan.num_workers(); ++w) {
      if (next[w] == plan.tasks(w).size()) continue;
      const Task& task = plan.tasks(w)[next[w]];
      fail(ErrorCode::plan_invalid, "ref", "no task can run: worker ", w, " stands at task ",
           next[w], " (", task_kind_name(task.kind), ", layer ", task.layer_idx, ")");
    }
  }
  if (exact_) copy_logits(state, *step.input, step.output->logits_stride);
}

void RefExecutor::copy_logits(const PlanState& state, const StepInput& input, uint32_t stride) {
  const auto* exact = reinterpret_cast<const double*>(state.buffers.data(kLogits));
  for (uint64_t i = 0; i < uint64_t{input.num_logit_rows} * stride; ++i)
    float_logits_[i] = static_cast<float>(exact[i]);
}

}  // namespace

std::unique_ptr<Executor> make_ref_executor(const Weights& weights,
                                            const std::vector<const Plan*>& plans,
                                            const ExecutorOptions& options, bool exact) {
  return std::make_unique<RefExecutor>(weights, plans, options, exact);
}

}  // namespace mimo_rt
