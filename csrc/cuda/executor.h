// Runs plans on a GPU: one launch of the persistent kernel per step, or for many rounds.
#pragma once

#include <mimo_rt/error.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/owner_process.h"
#include "cuda/device_cache.h"
#include "cuda/resident_launch.h"
#include "cuda/round_mail.h"
#include "cuda/step_inputs.h"
#include "cuda/trace_buffer.h"
#include "engine/step.h"

namespace mimo_rt::cuda {

class CudaExecutor final : public Executor {
 public:
  CudaExecutor(std::shared_ptr<const DeviceModel> model, const ExecutorOptions& options);
  ~CudaExecutor() override;

  const std::string& backend_name() const override { return backend_; }
  uint32_t num_workers() const override { return model_->plans.front().num_workers(); }
  void prepare(KvCache& cache) override {
    owner_.check("Session");  // CUDA itself says in a fork only that it is not initialised
    (void)device_cache(cache);
  }
  bool joins_sequences() const override { return true; }
  void run(const Plan& plan, KvCache& cache, const StepInput& input, StepOutput& output) override;
  void run_rounds(const Plan& plan, KvCache& cache, RoundState& rounds,
                  const std::function<void()>& poll) override;
  /// @throws Error{out_of_memory}
  void set_tracing(bool on) override;
  std::vector<TaskTrace> last_trace() const override { return trace_.trace(); }
  const uint8_t* buffer_data(const Plan& plan, uint16_t buffer_id) const override;

 private:
  /// Of a whole step or round, for the host: the kernel's own waits end long before.
  static constexpr uint64_t kStepTimeoutNs = 60'000'000'000;

  size_t index_of(const Plan& plan) const;
  DeviceCache& device_cache(KvCache& cache) const;
  void refuse_after_failure() const;
  void note_failure(const Error& error);
  void reserve_results(const StepBlock& block);
  PersistentParams launch_params(const StepBlock& block);
  std::vector<KvSequence> sequences_of_rows(KvCache& cache, const StepInput& input) const;
  void run_on_device(StepBlock& block, const StepInput& input, std::span<const KvSequence> sequences);
  void fail_after_hang(const Plan& plan) const;
  void read_results(const StepBlock& block, const StepInput& input, StepOutput& output) const;
  void launch_rounds(StepBlock& block, RoundState& rounds, const KvSequence& sequence);
  void follow_launch(StepBlock& block, RoundState& rounds, const std::function<void()>& poll);
  uint32_t grant_rounds(const StepBlock& block, const RoundState& rounds, uint32_t num_left);
  bool stays(const RoundState& rounds) const;
  bool resume_launch(const StepBlock& block, const RoundState& rounds);
  void free_device();
  void end_launch() noexcept;
  bool read_rounds(StepBlock& block, RoundState& rounds);
  [[noreturn]] void fail_step() const;
  uint64_t deadline_ns() const;
  HangReport& report() const { return *reinterpret_cast<HangReport*>(report_.data()); }

  const OwnerProcess owner_;
  const std::shared_ptr<const DeviceModel> model_;
  const std::string backend_ = "cuda";
  const uint32_t timeout_ms_, delay_seed_;
  StepChecker checker_;
  StepInputs inputs_;
  RoundMail mail_;
  ResidentLaunch resident_;
  TraceBuffer trace_;
  DeviceBuffer report_;   ///< pinned
  DeviceBuffer results_;  ///< pinned: [results, results_end) of the step block, then rows of logits
  std::optional<Error> failure_;  ///< after which no step runs
  std::weak_ptr<KvStore> last_cache_;
  mutable std::vector<uint8_t> buffer_copy_;
};

/// @throws Error{out_of_memory} that says how much is missing
void check_free_for_weights(const StepDevice& device, uint64_t num_bytes);

/// Copies the weights to the device and drops them here. All plans have as many workers; they are
/// the only ones that may be run, and Plan::verify() has found nothing wrong with them: the executor
/// does not prove them again (half a second for 70 layers and 132 workers). `draft`: for plans with one.
/// @throws Error{invalid_argument} for more workers than multiprocessors; Error{unsupported_shape};
///         Error{out_of_memory} that says how much is missing
std::unique_ptr<Executor> make_cuda_executor(std::shared_ptr<StepDevice> device,
                                             CudaWeights weights, const ModelConfig& config,
                                             const std::vector<const Plan*>& plans,
                                             const ExecutorOptions& options,
                                             std::optional<CudaDraftWeights> draft = std::nullopt);

}  // namespace mimo_rt::cuda
