// One step of the target model: what goes in, what comes out. Executors run it; sessions fill it.
#pragma once

#include "core/activations.h"
#include "kv/kv_cache.h"
#include "plan/trace.h"
#include "sampling/sampler.h"
#include "weights/draft_weights.h"
#include "weights/weights.h"

#include <mimo_rt/plan.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace mimo_rt {

struct RoundState;  // engine/round.h

/// Rows of a step. Positions of one sequence are consecutive and ascending and follow what its cache holds.
struct StepInput {
  uint32_t num_tokens = 0;                ///< 1..plan.max_tokens
  const int32_t* token_ids = nullptr;     ///< [num_tokens] in [0, vocab_size)
  const uint32_t* seq_idx = nullptr;      ///< [num_tokens] slots of the KV cache
  const uint32_t* positions = nullptr;    ///< [num_tokens]
  uint32_t num_logit_rows = 0;            ///< 0..plan.max_logit_rows
  const uint32_t* logit_rows = nullptr;   ///< [num_logit_rows] ascending row indices whose logits are wanted
  const SampleRequest* sample = nullptr;  ///< [num_logit_rows], or nullptr: no sampling
  /// 0: whole rows of logits are wanted. Else only tokens are, no row need be written, and so many of the best logits
  /// are enough for each: num_best_logits() of its request is 1 or more and at most that.
  uint32_t num_best_logits = 0;
  /// false: the caller looks at tokens and logprobs only; an executor that has logits elsewhere need not bring them.
  bool reads_logits = true;
  // Models with a draft. Context rows belong to sequence seq_idx[0]; their features are in its cache.
  uint32_t context_begin = 0;             ///< first position whose draft keys and values are to be made
  uint32_t num_context_rows = 0;          ///< 0..plan.max_context_rows
  uint32_t num_draft_rows = 0;            ///< rounds only: block size, or 0: the draft does not run
  RoundState* round = nullptr;            ///< rounds only

  bool wants_logits() const { return num_best_logits == 0; }
};

struct StepOutput {
  const float* logits = nullptr;          ///< [num_logit_rows, logits_stride], valid until the next step; or not wanted
  uint32_t logits_stride = 0;             ///< vocab_size rounded up to 16
  /// [num_logit_rows], storage given by the caller when `sample` is set. Undefined behind a draft that was not confirmed.
  SampleResult* sampled = nullptr;
  uint64_t active_experts = 0;            ///< set by the executor: active experts summed over the MoE layers
};

/// For executors that draw a step's rows in order: whether nobody reads the token of `row`, since it is behind a draft that
/// was not confirmed. It is -1 then, so that rows behind it are skipped as well. Who draws all rows at once may do so.
inline bool skips_row(const StepInput& input, uint32_t row, SampleResult* sampled) {
  if (!input.sample[row].holds_draft) return false;
  if (sampled[row - 1].token_id == input.token_ids[input.logit_rows[row]]) return false;
  set_token(-1, sampled[row]);
  return true;
}

/// Refuses a step that an executor could not run safely. Allocates only for a cache with more sequences than any
/// before.
class StepChecker {
 public:
  /// @throws Error{invalid_argument} naming the field, its row, what was expected and what came.
  void check(const ModelConfig& config, const Plan& plan, const KvCache& cache, const StepInput& input,
             const StepOutput& output);
  /// For rounds, before the first of them. False: begin() found that no round may run.
  /// @throws as check
  bool check_rounds(const ModelConfig& config, const Plan& plan, const KvCache& cache, const RoundState& rounds);

 private:
  void check_rows(const ModelConfig& config, const Plan& plan, const KvCache& cache, const StepInput& input);
  std::vector<uint32_t> next_pos_, num_rows_;  ///< [num_seqs], of the step being checked
};

/// Runs plans of one model. Not thread-safe: one step at a time.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual const std::string& backend_name() const = 0;  ///< "ref", "cpu-avx2", …
  virtual uint32_t num_workers() const = 0;
  /// Makes room for the keys and values of a new cache where the executor keeps them. run() does it, too: this one
  /// says before anything else that there is no room. Any thread may call it, also while a step runs with another
  /// cache.
  /// @throws Error{out_of_memory}
  virtual void prepare(KvCache&) {}
  /// Whether run() takes a joint cache: KvCache(parts).
  virtual bool joins_sequences() const { return false; }
  /// Cores that workers should be bound to and the system does not give. Any thread may call it.
  virtual std::vector<int> missing_cores() const { return {}; }
  /// Runs one epoch of `plan` (verified, made for num_workers() workers, options within those given to the factory).
  /// @throws Error{timeout} with a hang report; the executor then refuses further steps.
  virtual void run(const Plan& plan, KvCache& cache, const StepInput& input, StepOutput& output) = 0;
  /// Runs epochs of a round plan until `state.end` says otherwise; the caller has called state.begin() and reserved the
  /// cache. `poll` is called on the caller's thread now and then, after new tokens at the latest when the rounds end;
  /// it reads state.ring and may set state.stop_requested. If it throws, the rounds end and the exception goes on.
  /// With state.comes_back a device may still wait for more rounds of `state` when this returns; any other call ends
  /// that.
  /// @throws Error{timeout} as run().
  virtual void run_rounds(const Plan& plan, KvCache& cache, RoundState& state, const std::function<void()>& poll) = 0;
  /// Task times of the last step or round; empty unless tracing is on. Tracing changes no result.
  /// @throws Error{out_of_memory} where times need memory of a device
  virtual void set_tracing(bool on) = 0;
  virtual std::vector<TaskTrace> last_trace() const = 0;
  /// Bytes of any arena buffer after the last step (for comparing executors buffer by buffer).
  virtual const uint8_t* buffer_data(const Plan& plan, uint16_t buffer_id) const = 0;
};

struct ExecutorOptions {
  uint32_t num_workers = 0;       ///< cpu: 0 = num_usable_cores(); ref: any number, run serially in dependency order
  bool pin_workers = true;        ///< see core/pin.h
  uint32_t park_after_us = 200;   ///< an idle worker spins this long before it sleeps (no CPU use while idle)
  bool yield_cores = false;       ///< cpu: fewer workers while other processes want cores; see cpu/team.h
  uint32_t max_job_us = 50'000;   ///< cpu: about so long after each other rounds run before the team may change
  uint32_t timeout_ms = 10'000;   ///< a step in which nothing moves for this long has hung
  uint32_t idle_us = 2000;        ///< cuda: a launch leaves after so long a wait for its caller; at most timeout_ms / 2
  uint32_t delay_seed = 0;        ///< cuda, for tests: tasks begin and signal late by random times of this seed; 0: not
  Activations activations = Activations::bf16;
};

/// `backend`: a resolved name (include/mimo_rt/device.h). The weights must outlive the executor.
/// Workers' memory is sized for `plans`, the only plans that may be run; Plan::verify() has found nothing wrong with them.
/// `draft`: nullptr for a model without; must outlive the executor.
std::unique_ptr<Executor> make_cpu_executor(const Weights& weights, const DraftWeights* draft,
                                            const std::vector<const Plan*>& plans, const std::string& backend,
                                            const ExecutorOptions& options);

/// Serial reference. `exact`: activations, KV and logits stay float64 (no BF16 rounding anywhere), which makes it an
/// evaluator of the mathematical model (with BF16 `activations` only); otherwise buffers round exactly where the CPU
/// executor rounds, sums are float64.
std::unique_ptr<Executor> make_ref_executor(const Weights& weights, const DraftWeights* draft,
                                            const std::vector<const Plan*>& plans, const ExecutorOptions& options,
                                            bool exact);

}  // namespace mimo_rt
