#include "cpu/executor.h"

#include "core/checks.h"
#include "cpu/dispatch.h"
#include "cpu/ops_linear.h"
#include "engine/round.h"
#include "plan/buffers.h"
#include "plan/wait_text.h"

#include <mimo_rt/device.h>

#include <algorithm>
#include <exception>

namespace mimo_rt::cpu {
namespace {

constexpr const char* kWhere = "Executor.run";

WorkerPool::Options pool_options(const ExecutorOptions& options) {
  return {options.num_workers ? options.num_workers : num_usable_cores(), options.pin_workers,
          options.park_after_us};
}

void check_draft(const Plan& plan, const DraftWeights* draft) {
  constexpr const char* kMaker = "make_cpu_executor";
  const PlanShape::Draft& planned = plan.shape().draft;
  if (!planned.num_layers) return;
  MIMO_RT_CHECK(draft, invalid_argument, kMaker,
                "draft: expected weights for a plan with a draft, got nullptr");
  const DraftConfig& config = draft->config();
  MIMO_RT_CHECK(planned.num_layers == config.num_layers && planned.block_size == config.block_size,
                invalid_argument, kMaker, "draft: expected ", planned.num_layers,
                " layers and blocks of ", planned.block_size, " as in the plan, got ",
                config.num_layers, " and ", config.block_size);
  const uint32_t num_rows = draft->lm_head().rows;  // 0 before DraftWeights::bind
  MIMO_RT_CHECK(num_rows == round_up(planned.vocab_size, kTileRows), invalid_argument, kMaker,
                "draft: expected a bound one with an lm_head for ", planned.vocab_size,
                " tokens as in the plan, got ", num_rows, " rows");
  MIMO_RT_CHECK(draft_heads_fit(config), unsupported_shape, kMaker, "draft head sizes ",
                config.qk_head_dim, " and ", config.v_head_dim, " with blocks of ",
                config.block_size, ": too large for this backend");
}

const std::vector<const Plan*>& checked(const std::vector<const Plan*>& plans,
                                        const DraftWeights* draft) {
  for (const Plan* plan : plans) check_draft(*plan, draft);
  return plans;
}

}  // namespace

CpuExecutor::CpuExecutor(const Weights& weights, const DraftWeights* draft,
                         const std::vector<const Plan*>& plans, const std::string& backend,
                         const Kernels& kernels, const ExecutorOptions& options)
    : weights_(weights),
      backend_(backend),
      timeout_ms_(options.timeout_ms),
      max_job_ns_(uint64_t{1000} * options.max_job_us),
      yields_cores_(options.yield_cores),
      states_(checked(plans, draft), weights.config(), draft ? &draft->config() : nullptr),
      everybody_(pool_options(options).num_workers),
      team_(everybody_),
      pool_(pool_options(options)),
      monitor_(pool_.num_workers(), options.timeout_ms,
               pool_.is_oversubscribed() ? 0 : WaitMonitor::kSpinNs) {
  size_t most_tasks = 0;
  for (const Plan* plan : plans) {
    MIMO_RT_CHECK(plan->num_workers() == num_workers(), invalid_argument, "make_cpu_executor",
                  "plan: expected one for ", num_workers(), " workers, got ", plan->num_workers());
    for (uint32_t w = 0; w < num_workers(); ++w)
      most_tasks = std::max(most_tasks, plan->tasks(w).size());
  }
  const ScratchSizes sizes(weights, kernels, states_.all_whole(), draft);
  for (uint32_t w = 0; w < num_workers(); ++w) {
    workers_.push_back(std::make_unique<Worker>(weights, kernels, sizes, step_, draft));
    workers_.back()->trace.reserve(most_tasks);
  }
  // Whoever wants more workers than cores gets them.
  if (pool_.is_oversubscribed() || num_workers() == 1) yields_cores_ = false;
  pool_.run(*this);  // every worker touches its scratch first
}

/// Who runs the next steps of `plan`, and the tasks and memory for them.
PlanState& CpuExecutor::choose_team(const Plan& plan) {
  PlanState& whole = states_.whole(plan);
  if (states_.has_failed()) yields_cores_ = false;
  if (is_tracing_ || states_.has_failed()) team_.reset();
  is_team_small_ = !team_.is_whole();
  PlanState* smaller = is_team_small_ ? states_.smaller(plan, team_.size()) : nullptr;
  pool_.set_team(smaller ? team_.members() : everybody_.members());
  return smaller ? *smaller : whole;
}

/// After steps of `plan`, the first of which began at step_begin_.
void CpuExecutor::watch_team(const Plan& plan, uint32_t num_rows, uint32_t num_steps) {
  if (!yields_cores_ || is_tracing_) return;
  if (pool_.team_size() != team_.size()) {  // its plan is still being made, by a thread that wants a core as well
    (void)pool_.take_shared();
    return;
  }
  const auto ns = static_cast<int64_t>(now_ns());
  const Team::Run run{plan.tasks(0).data(), num_rows, num_steps, ns, begin_ns() + ns};
  if (team_.observe(run)) team_.review(pool_.take_shared());
}

/// Whether rounds should go on in another job, which may have another team.
bool CpuExecutor::is_time_for_another_job() const {
  if (!yields_cores_ || is_tracing_ || now_ns() < max_job_ns_) return false;
  return is_team_small_ || pool_.has_shared();
}

void CpuExecutor::refuse_after_failure() const {
  if (!failure_.empty())
    fail(ErrorCode::timeout, kWhere, "this executor has stopped for good: ", failure_);
}

void CpuExecutor::fail_after_hang() {
  if (!monitor_.has_stopped()) return;
  failure_ = hang_text();
  for (const auto& worker : workers_) worker->trace.clear();  // last_trace(): of whole steps
  fail(ErrorCode::timeout, kWhere, failure_);
}

void CpuExecutor::run(const Plan& plan, KvCache& cache, const StepInput& input,
                      StepOutput& output) {
  refuse_after_failure();
  (void)states_.whole(plan);  // throws for a foreign one
  checker_.check(weights_.config(), plan, cache, input, output);
  PlanState& state = choose_team(plan);
  prepare_step(state, cache, input, output);
  rounds_ = nullptr;
  pool_.run(*this);
  fail_after_hang();
  ++state.epoch;
  watch_team(plan, input.num_tokens, 1);
  for (const auto& worker : workers_) output.active_experts += worker->num_active_experts;
}

void CpuExecutor::run_rounds(const Plan& plan, KvCache& cache, RoundState& rounds,
                             const std::function<void()>& poll) {
  refuse_after_failure();
  (void)states_.whole(plan);  // throws for a foreign one
  if (!checker_.check_rounds(weights_.config(), plan, cache, rounds)) return;
  rounds_ = &rounds;
  std::exception_ptr poll_error;
  const auto call_poll = [&] {
    if (poll_error || !poll) return;
    try {
      poll();
    } catch (...) {
      poll_error = std::current_exception();
      rounds.stop_requested = true;
    }
  };
  while (rounds.end == RoundEnd::running && !monitor_.has_stopped()) {
    PlanState& state = choose_team(plan);
    StepOutput output;
    prepare_step(state, cache, rounds.input, output);
    // What passes between two jobs is no part of a round.
    rounds.round_begin_ns = static_cast<uint64_t>(begin_ns());
    is_job_over_ = false;
    const uint32_t num_before = rounds.num_rounds;
    const uint64_t num_rows_before = rounds.num_rows;
    pool_.run(*this, call_poll);
    const uint32_t num_rounds = rounds.num_rounds - num_before;
    uint64_t num_active = 0;
    for (const auto& worker : workers_) num_active += worker->num_active_experts;
    rounds.count_experts(num_active, num_rounds);
    state.count_epochs();
    const auto num_rows = static_cast<uint32_t>((rounds.num_rows - num_rows_before) / std::max(num_rounds, 1u));
    watch_team(plan, std::max(num_rows, 1u), num_rounds);
  }
  if (poll_error) {
    if (monitor_.has_stopped()) failure_ = hang_text();
    std::rethrow_exception(poll_error);
  }
  fail_after_hang();
  rebase_trace();
}

void CpuExecutor::prepare_step(PlanState& state, KvCache& cache, const StepInput& input,
                               StepOutput& output) {
  output.logits = input.wants_logits() ? state.f32_row(kLogits, 0) : nullptr;
  output.logits_stride = state.stride(kLogits);
  output.active_experts = 0;
  running_ = &state;
  step_ = {&state, &cache, &input, &output, step_.number + 1};
  state.fill_tables(input, cache);
  for (const auto& worker : workers_) {
    worker->num_active_experts = 0;
    worker->trace.clear();
    worker->fit_segments(cache);
  }
  step_begin_ = std::chrono::steady_clock::now();
}

void CpuExecutor::work(uint32_t worker_idx) noexcept {
  Worker& worker = *workers_[worker_idx];
  if (!running_) return worker.touch();
  // A worker without tasks is not waited for, so what a round leaves is no longer its to read.
  if (running_->plan.tasks(worker_idx).empty()) return;
  const RoundState* rounds = rounds_;
  uint64_t epoch = running_->epoch;
  do {
    pool_.review_pin(worker_idx);
    worker.begin_epoch(epoch);
    const bool is_whole =
        is_tracing_ ? run_tasks<true>(worker_idx, epoch) : run_tasks<false>(worker_idx, epoch);
    if (!is_whole || !rounds || !await_gate(worker_idx, epoch)) return;
    ++epoch;
  } while (rounds->end == RoundEnd::running && !is_job_over_);
}

/// Passes when the round's last task is done: then `rounds_` says whether there is another, and its
/// rows are ready.
bool CpuExecutor::await_gate(uint32_t worker_idx, uint64_t epoch) {
  const PlanState& state = *running_;
  const uint32_t gate = state.plan.gate_counter();
  const auto end = static_cast<uint32_t>(state.plan.tasks(worker_idx).size());
  const uint64_t expected = (epoch + 1) * state.plan.counters()[gate].total;
  return monitor_.wait(state.counters, {worker_idx, end, gate, expected, nullptr, nullptr});
}

bool CpuExecutor::await_inputs(const Task& task, uint32_t worker_idx, uint32_t task_idx,
                               uint64_t epoch) {
  const PlanState& state = *running_;
  for (uint32_t i = 0; i < task.num_waits; ++i) {
    const Wait& wait = task.waits[i];
    const uint64_t expected =
        epoch * state.plan.counters()[wait.counter].total + wait.value;
    if (state.counters.load(wait.counter) >= expected) continue;
    const ByteRange weights = first_weights(task, task_idx ? &task - 1 : nullptr, *workers_[worker_idx]);
    if (!monitor_.wait(state.counters, {worker_idx, task_idx, wait.counter, expected,
                                        weights.begin, weights.end}))
      return false;
  }
  return true;
}

template <bool kIsTracing>
bool CpuExecutor::run_tasks(uint32_t worker_idx, uint64_t epoch) {
  Worker& worker = *workers_[worker_idx];
  const std::span<const Task> tasks = running_->plan.tasks(worker_idx);
  for (uint32_t i = 0; i < tasks.size(); ++i) {
    const Task& task = tasks[i];
    TaskTrace times{worker_idx, i, 0, 0, 0};
    if constexpr (kIsTracing) times.wait_begin_ns = now_ns();
    if (!await_inputs(task, worker_idx, i, epoch)) return false;
    if constexpr (kIsTracing) times.begin_ns = now_ns();
    worker.place = running_->stealing.place(worker_idx, i);
    run_task(task, worker);
    const bool ends_round = task.kind == TaskKind::accept && task.tile_first == 0;
    if (ends_round) is_job_over_ = is_time_for_another_job();
    if (task.signal_counter != kNoCounter) running_->counters.signal(task.signal_counter);
    if (ends_round) pool_.notify_caller();
    if constexpr (kIsTracing) {
      times.end_ns = now_ns();
      worker.trace.push_back(times);  // within the capacity reserved for the longest list
    }
  }
  return true;
}

int64_t CpuExecutor::begin_ns() const {
  return std::chrono::nanoseconds(step_begin_.time_since_epoch()).count();
}

uint64_t CpuExecutor::now_ns() const {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now() - step_begin_)
                                   .count());
}

std::string CpuExecutor::wait_text(const HangReport& report) const {
  return mimo_rt::wait_text(running_->plan, report.worker_idx, report.task_idx, report.counter,
                            report.expected, report.seen);
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

/// Times of the last round count from its own begin.
void CpuExecutor::rebase_trace() {
  uint64_t begin_ns = ~uint64_t{0};
  for (const auto& worker : workers_)
    if (!worker->trace.empty()) begin_ns = std::min(begin_ns, worker->trace[0].wait_begin_ns);
  for (const auto& worker : workers_)
    for (TaskTrace& times : worker->trace) {
      times.wait_begin_ns -= begin_ns;
      times.begin_ns -= begin_ns;
      times.end_ns -= begin_ns;
    }
}

std::vector<TaskTrace> CpuExecutor::last_trace() const {
  std::vector<TaskTrace> all;
  for (const auto& worker : workers_)
    all.insert(all.end(), worker->trace.begin(), worker->trace.end());
  return all;
}

const uint8_t* CpuExecutor::buffer_data(const Plan& plan, uint16_t buffer_id) const {
  const PlanState& state = states_.whole(plan);  // smaller ones use its buffers
  MIMO_RT_CHECK(buffer_id < state.buffers.size() && state.buffers[buffer_id], invalid_argument,
                "Executor.buffer_data", "buffer_id: expected an arena buffer or the logits, got ",
                buffer_id);
  return state.buffers[buffer_id];
}

}  // namespace mimo_rt::cpu

namespace mimo_rt {

std::unique_ptr<Executor> make_cpu_executor(const Weights& weights, const DraftWeights* draft,
                                            const std::vector<const Plan*>& plans,
                                            const std::string& backend,
                                            const ExecutorOptions& options) {
  const cpu::Kernels& kernels = cpu::select_kernels(backend, options.activations);
  return std::make_unique<cpu::CpuExecutor>(weights, draft, plans, backend, kernels, options);
}

}  // namespace mimo_rt
