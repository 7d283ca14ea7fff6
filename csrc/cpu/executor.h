// Runs plans on resident threads.
#pragma once

#include "cpu/counters.h"
#include "cpu/kernels.h"
#include "cpu/ops_context.h"
#include "cpu/plan_states.h"
#include "cpu/team.h"
#include "cpu/worker_pool.h"
#include "engine/step.h"

#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace mimo_rt::cpu {

class CpuExecutor final : public Executor, private WorkerPool::Job {
 public:
  CpuExecutor(const Weights& weights, const DraftWeights* draft,
              const std::vector<const Plan*>& plans, const std::string& backend,
              const Kernels& kernels, const ExecutorOptions& options);

  const std::string& backend_name() const override { return backend_; }
  uint32_t num_workers() const override { return pool_.num_workers(); }
  bool joins_sequences() const override { return true; }
  std::vector<int> missing_cores() const override { return pool_.missing_cores(); }
  void run(const Plan& plan, KvCache& cache, const StepInput& input, StepOutput& output) override;
  void run_rounds(const Plan& plan, KvCache& cache, RoundState& rounds,
                  const std::function<void()>& poll) override;
  void set_tracing(bool on) override;
  std::vector<TaskTrace> last_trace() const override;
  const uint8_t* buffer_data(const Plan& plan, uint16_t buffer_id) const override;
  // For tests.
  Team& team() { return team_; }
  uint32_t running_team_size() const { return pool_.team_size(); }  ///< of the job that runs, or of the last

 private:
  void work(uint32_t worker_idx) noexcept override;
  template <bool kIsTracing>
  bool run_tasks(uint32_t worker_idx, uint64_t epoch);
  bool await_inputs(const Task& task, uint32_t worker_idx, uint32_t task_idx, uint64_t epoch);
  bool await_gate(uint32_t worker_idx, uint64_t epoch);
  PlanState& choose_team(const Plan& plan);
  void watch_team(const Plan& plan, uint32_t num_rows, uint32_t num_steps);
  bool is_time_for_another_job() const;
  void refuse_after_failure() const;
  void prepare_step(PlanState& state, KvCache& cache, const StepInput& input, StepOutput& output);
  void fail_after_hang();
  void rebase_trace();
  std::string hang_text() const;
  std::string wait_text(const HangReport& report) const;
  int64_t begin_ns() const;
  uint64_t now_ns() const;

  const Weights& weights_;
  const std::string backend_;
  const uint32_t timeout_ms_;
  const uint64_t max_job_ns_;
  bool yields_cores_;
  PlanStates states_;
  std::vector<std::unique_ptr<Worker>> workers_;
  StepChecker checker_;
  PlanState* running_ = nullptr;  // of the step that runs; nullptr: workers touch their memory
  RoundState* rounds_ = nullptr;  // that run; nullptr: one step
  bool is_job_over_ = false;      // rounds go on, but in another job; set by whoever ends a round
  Step step_;
  bool is_tracing_ = false;
  std::chrono::steady_clock::time_point step_begin_;
  std::string failure_;           // the hang report after which no step runs
  const Team everybody_;
  Team team_;
  bool is_team_small_ = false;    // of the job that runs: it should be, though its plan may not be there yet
  WorkerPool pool_;               // last two: their threads use all of the above
  WaitMonitor monitor_;
};

}  // namespace mimo_rt::cpu
