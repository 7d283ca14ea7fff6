// Runs a plan's tasks one after the other, in an order that its counters allow.
//
// Workers take turns; one whose next task must wait is skipped. When nobody can go on, the plan
// itself is wrong.
#include "core/checks.h"
#include "engine/round.h"
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
  RefExecutor(const Weights& weights, const DraftWeights* draft,
              const std::vector<const Plan*>& plans, const ExecutorOptions& options, bool exact)
      : config_(weights.config()),
        num_workers_(options.num_workers ? options.num_workers : 1),
        exact_(exact),
        kv_(weights.config(), exact, draft ? &draft->config() : nullptr),
        ops_(weights, exact, draft, options.activations) {
    for (const Plan* plan : plans) {
      const PlanShape::Draft& planned = plan->shape().draft;
      MIMO_RT_CHECK(draft || !planned.num_layers, invalid_argument, "make_ref_executor",
                    "draft: expected weights for a plan with a draft, got nullptr");
      MIMO_RT_CHECK(!planned.num_layers ||
                        draft->lm_head().rows == round_up(planned.vocab_size, kTileRows),
                    invalid_argument, "make_ref_executor", "draft: expected a bound one with an ",
                    "lm_head for ", planned.vocab_size, " tokens as in the plan, got ",
                    draft->lm_head().rows, " rows");
      states_.push_back(std::make_unique<PlanState>(*plan, exact));
    }
  }

  const std::string& backend_name() const override { return name_; }
  uint32_t num_workers() const override { return num_workers_; }
  void prepare(KvCache& cache) override { kv_.prepare(cache); }
  void run(const Plan& plan, KvCache& cache, const StepInput& input, StepOutput& output) override;
  void run_rounds(const Plan& plan, KvCache& cache, RoundState& rounds,
                  const std::function<void()>& poll) override;
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
  void run_epoch(PlanState& state, KvCache& cache, const StepInput& input, StepOutput& output);
  void run_tasks(PlanState& state, const ref::Step& step);
  bool is_ready(const PlanState& state, const Task& task) const;
  void run_task(PlanState& state, const ref::Step& step, uint32_t worker_idx, uint32_t task_idx);
  void copy_rows(const PlanState& state, uint16_t buffer_id, uint32_t num_rows,
                 std::vector<float>& out) const;

  const ModelConfig& config_;
  const std::string name_ = "ref";
  uint32_t num_workers_;
  bool exact_;
  ref::KeyValues kv_;
  ref::Ops ops_;
  StepChecker checker_;
  std::vector<std::unique_ptr<PlanState>> states_;
  std::vector<float> float_logits_, float_draft_logits_;  // exact mode: FP32 views
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
  run_epoch(state, cache, input, output);
  if (!input.wants_logits()) output.logits = nullptr;  // written all the same: the truth takes no short cut
}

void RefExecutor::run_rounds(const Plan& plan, KvCache& cache, RoundState& rounds,
                             const std::function<void()>& poll) {
  PlanState& state = state_of(plan);
  if (!checker_.check_rounds(config_, plan, cache, rounds)) return;
  while (rounds.end == RoundEnd::running) {
    StepOutput output;
    run_epoch(state, cache, rounds.input, output);
    rounds.count_experts(output.active_experts, 1);
    if (poll) poll();
  }
}

void RefExecutor::run_epoch(PlanState& state, KvCache& cache, const StepInput& input,
                            StepOutput& output) {
  const auto floats_of = [&](uint16_t buffer_id, std::vector<float>& copy) -> const float* {
    const BufferInfo& info = state.plan.buffers()[buffer_id];
    if (!exact_) return reinterpret_cast<const float*>(state.buffers.data(buffer_id));
    copy.resize(uint64_t{info.rows} * info.cols);
    return copy.data();
  };
  output.logits_stride = state.plan.buffers()[kLogits].cols;
  output.active_experts = 0;
  output.logits = floats_of(kLogits, float_logits_);
  const float* draft_logits = floats_of(kDraftLogits, float_draft_logits_);
  kv_.select(cache);
  step_begin_ = Clock::now();
  trace_.clear();
  try {
    run_tasks(state, {&state.plan, &state.buffers, &kv_, &input, &output, draft_logits});
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
  if (exact_ && (task.kind == TaskKind::sample || task.kind == TaskKind::accept) && task.tile_first == 0)
    copy_rows(state, kLogits, step.input->num_logit_rows, float_logits_);
  if (exact_ && task.kind == TaskKind::draft_sample && step.input->num_draft_rows)
    copy_rows(state, kDraftLogits, step.input->num_draft_rows - 1, float_draft_logits_);
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
  if (exact_ && !plan.options().is_round)
    copy_rows(state, kLogits, step.input->num_logit_rows, float_logits_);
}

void RefExecutor::copy_rows(const PlanState& state, uint16_t buffer_id, uint32_t num_rows,
                            std::vector<float>& out) const {
  const auto* exact = reinterpret_cast<const double*>(state.buffers.data(buffer_id));
  const uint64_t count = uint64_t{num_rows} * state.plan.buffers()[buffer_id].cols;
  for (uint64_t i = 0; i < count; ++i) out[i] = static_cast<float>(exact[i]);
}

}  // namespace

std::unique_ptr<Executor> make_ref_executor(const Weights& weights, const DraftWeights* draft,
                                            const std::vector<const Plan*>& plans,
                                            const ExecutorOptions& options, bool exact) {
  return std::make_unique<RefExecutor>(weights, draft, plans, options, exact);
}

}  // namespace mimo_rt
