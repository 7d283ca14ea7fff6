// Sessions that decode at the same time share steps: one pass over the weights for a token of each, and for drafts of some.
//
// Whoever gets the engine takes along what others wait with. First it waits until as many wait as took part in the last
// such step and are on their way with their next token, but only for a small part of what that step took: whoever comes
// later, because its caller is slow or its text at an end, is not waited for again. A row's results do not depend on the
// other rows of a step, so no text changes. With a draft model a step has a token of each, and no drafts: round_sharing.h.
#pragma once

#include <mimo_rt/engine.h>

#include "engine/joint_widths.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <span>
#include <vector>

namespace mimo_rt {

struct StepRequest;  // engine/step_batch.h
class Sequence;

/// A session's part in a step: one token and drafts behind it; after each of them a token is sampled.
struct JointRequest {
  StepRequest& step;     ///< with all drafts of the offer; run() takes those away that it does not verify
  DraftOffer offer = {};
  double spent = 0.0;    ///< by run(): what the step cost with the drafts of all, in steps without drafts
};

class JointSteps {
 public:
  /// Runs the step of `request`, alone or with those of others. The caller does not hold `engine.steps`. Afterwards the
  /// sequence holds all tokens of the step, drafts that were not confirmed, too.
  /// False: `is_cancelled` was set before the step began, and it did not run.
  /// @throws what the step throws, to all that took part
  bool run(Engine::Impl& engine, JointRequest& request, const std::atomic<bool>& is_cancelled);
  /// What to expect of a step of so many rows; 0: there was none yet. Any thread may call it.
  double step_ns(uint32_t num_rows) const;

 private:
  struct Caller;
  void await_others(Engine::Impl& engine, const Caller& caller) const;
  void run_with_others(Engine::Impl& engine, Caller& caller);
  void run_all(Engine::Impl& engine, std::span<JointRequest*> requests);

  // Of the last such step; by whoever holds `engine.steps`.
  std::vector<const Sequence*> last_;  ///< who took part; they may be gone, only the addresses are compared
  std::chrono::nanoseconds last_duration_{};
  mutable std::mutex times_mutex_;  ///< whoever holds `engine.steps` reads without
  StepTimes times_;
};

}  // namespace mimo_rt
