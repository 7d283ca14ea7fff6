#include "cpu/executor.h"

#include "core/checks.h"
#include "cpu/dispatch.h"
#include "plan/buffers.h"

#include <mimo_rt/device.h>

#include <algorithm>

namespace mimo_rt::cpu {
namespace {

constexpr const char* kWhere = "Executor.run";

WorkerPool::Options pool_options(const ExecutorOptions& options) {
  return {options.num_workers ? options.num_workers : num_usable_cores(), options.pin_workers,
          options.park_after_us};
}

}  // namespace

CpuExecutor::CpuExecutor(const Weights& weights, const std::vector<const Plan*>& plans,
                         const std::string& backend, const Kernels& kernels,
                         const ExecutorOptions& options)
    : weights_(weights),
      backend_(backend),
      timeout_ms_(options.timeout_ms),
      pool_(pool_options(options)),
      monitor_(pool_.num_workers(), options.timeout_ms, pool_.is_oversubscribed()) {
  size_t most_tasks = 0;
  for (const Plan* plan : plans) {
    MIMO_RT_CHECK(plan->num_workers() == num_workers(), invalid_argument, "make_cpu_executor",
                  "plan: expected one for ", num_workers(), " workers, got ", plan->num_workers());
    states_.push_back(std::make_unique<PlanState>(*plan, weights.config()));
    for (uint32_t w = 0; w < num_workers(); ++w)
      most_tasks = std::max(most_tasks, plan->tasks(w).size());
  }
  const ScratchSizes sizes(weights, kernels, states_);
  for (uint32_t w = 0; w < num_workers(); ++w) {
    workers_.push_back(std::make_unique<Worker>(weights, kernels, sizes, step_));
    workers_.back()->trace.reserve(most_tasks);
  }
  pool_.run(*this);  // every worker touches its scratch first
}

PlanState& CpuExecutor::state_of(const Plan& plan) const {
  for (const auto& state : states_)  // copies of a plan share their tasks
    if (state->plan.tasks(0).data() == plan.tasks(0).data()) return *state;
  fail(ErrorCode::invalid_argument, kWhere,
       "plan: expected one of those given to the executor, got another");
}

void CpuExecutor::run(const Plan& plan, KvCache& cache, const StepInput& input,
                      StepOutput& output) {
  if (!failure_.empty())
    fail(ErrorCode::timeout, kWhere, "this executor has stopped for good: ", failure_);
  PlanState& state = state_of(plan);
  checker_.check(weights_.config(), plan, cache, input, output);
  prepare_step(state, cache, input, output);
  running_ = &state;
  pool_.run(*this);
  if (monitor_.has_stopped()) {
    failure_ = hang_text();
    for (const auto& worker : workers_) worker->trace.clear();  // last_trace(): of whole steps
    fail(ErrorCode::timeout, kWhere, failure_);
  }
  ++state.epoch;
  for (const auto& worker : workers_) output.active_experts += worker->num_active_experts;
}

void CpuExecutor::prepare_step(PlanState& state, KvCache& cache, const StepInput& input,
                               StepOutput& output) {
  output.logits = state.f32_row(kLogits, 0);
  output.logits_stride = state.stride(kLogits);
  output.active_experts = 0;
  step_ = {&state, &cache, &input, &output, step_.number + 1};
  for (RopeTable& rope : state.ropes) rope.fill(input.positions, input.num_tokens);
  for (const auto& worker : workers_) {
    worker->num_active_experts = 0;
    worker->trace.clear();
    // Only a cache with a longer context than any before makes this allocate.
    if (worker->segments.size() < cache.max_segments())
      worker->segments.resize(cache.max_segments());
  }
  step_begin_ = std::chrono::steady_clock::now();
}

void CpuExecutor::work(uint32_t worker_idx) noexcept {
  if (!running_) return workers_[worker_idx]->touch();
  return is_tracing_ ? run_tasks<true>(worker_idx) : run_tasks<false>(worker_idx);
}

bool CpuExecutor::await_inputs(const Task& task, uint32_t worker_idx, uint32_t task_idx) {
  const PlanState& state = *running_;
  for (uint32_t i = 0; i < task.num_waits; ++i) {
    const Wait& wait = task.waits[i];
    const uint64_t expected =
        state.epoch * state.plan.counters()[wait.counter].total + wait.value;
    if (state.counters.load(wait.counter) >= expected) continue;
    const ByteRange weights = first_weights(task, weights_);
    if (!monitor_.wait(state.counters, {worker_idx, task_idx, wait.counter, expected,
                                        weights.begin, weights.end}))
      return false;
  }
  return true;
}

template <bool kIsTracing>
void CpuExecutor::run_tasks(uint32_t worker_idx) {
  Worker& worker = *workers_[worker_idx];
  const std::span<const Task> tasks = running_->plan.tasks(worker_idx);
  for (uint32_t i = 0; i < tasks.size(); ++i) {
    const Task& task = tasks[i];
    TaskTrace times{worker_idx, i, 0, 0, 0};
    if constexpr (kIsTracing) times.wait_begin_ns = now_ns();
    if (!await_inputs(task, worker_idx, i)) return;
    if constexpr (kIsTracing) times.begin_ns = now_ns();
    run_task(task, worker);
    if (task.signal_counter != kNoCounter) running_->counters.signal(task.signal_counter);
    if constexpr (kIsTracing) {
      times.end_ns = now_ns();
      worker.trace.push_back(times);  // within the capacity reserved for the longest list
    }
  }
}

uint64_t CpuExecutor::now_ns() const {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now() - step_begin_)
                                   .count());
}

std::string CpuExecutor::wait_text(const HangReport& report) const {
  const Plan& plan = running_->plan;
  const Task& task = plan.tasks(report.worker_idx)[report.task_idx];
  const std::string layer = task.layer_idx == kNoLayer ? "" : concat(", layer ", task.layer_idx);
  return concat("worker ", report.worker_idx, " task ", report.task_idx, " (",
                task_kind_name(task.kind), layer, ") waits for counter '",
                plan.counters()[report.counter].name, "': expected >= ", report.expected,
                ", saw ", report.seen);
}

/// All waits, not only the first: the one at the root is that whose counter nobody in the list will
/// signal.
std::string CpuExecutor::hang_text() const {
  constexpr uint32_t kMaxWaits = 8;
  const uint32_t first = monitor_.first_worker();
  std::string text = concat("timed out after ", timeout_ms_, " ms without progress: ",
                            wait_text(monitor_.reports()[first]));
  uint32_t num_others = 0;
  for (const HangReport& report : monitor_.reports()) {
    if (report.worker_idx == first || !report.expected) continue;
    if (++num_others <= kMaxWaits) text += "; " + wait_text(report);
  }
  if (num_others > kMaxWaits) text += concat("; and ", num_others - kMaxWaits, " more");
  return text + ". Open the engine again; raise timeout_ms if the machine was overloaded.";
}

void CpuExecutor::set_tracing(bool on) {
  is_tracing_ = on;
  for (const auto& worker : workers_) worker->trace.clear();
}

std::vector<TaskTrace> CpuExecutor::last_trace() const {
  std::vector<TaskTrace> all;
  for (const auto& worker : workers_)
    all.insert(all.end(), worker->trace.begin(), worker->trace.end());
  return all;
}

const uint8_t* CpuExecutor::buffer_data(const Plan& plan, uint16_t buffer_id) const {
  const PlanState& state = state_of(plan);
  MIMO_RT_CHECK(buffer_id < state.buffers.size() && state.buffers[buffer_id], invalid_argument,
                "Executor.buffer_data", "buffer_id: expected an arena buffer or the logits, got ",
                buffer_id);
  return state.buffers[buffer_id];
}

}  // namespace mimo_rt::cpu

namespace mimo_rt {

std::unique_ptr<Executor> make_cpu_executor(const Weights& weights,
                                            const std::vector<const Plan*>& plans,
                                            const std::string& backend,
                                            const ExecutorOptions& options) {
  return std::make_unique<cpu::CpuExecutor>(weights, plans, backend, cpu::select_kernels(backend),
                                            options);
}

}  // namespace mimo_rt
