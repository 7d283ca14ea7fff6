// Sessions that decode at the same time share steps: one pass over the weights for a token of each.
//
// Whoever gets the engine takes along what others wait with. First it waits until as many wait as took part in the last
// such step and are on their way with their next token, but only for a small part of what that step took: whoever comes
// later, because its caller is slow or its text at an end, is not waited for again. A row's results do not depend on the
// other rows of a step, so no text changes.
#pragma once

#include <mimo_rt/engine.h>

#include <atomic>
#include <chrono>
#include <vector>

namespace mimo_rt {

struct StepRequest;  // engine/step_batch.h
class Sequence;

class JointSteps {
 public:
  /// Runs the step of `request`, one token that another is sampled after, alone or with those of others. The caller does
  /// not hold `engine.steps`. False: `is_cancelled` was set before the step began, and it did not run.
  /// @throws what the step throws, to all that took part
  bool run(Engine::Impl& engine, const StepRequest& request, const std::atomic<bool>& is_cancelled);

 private:
  struct Caller;
  void await_others(Engine::Impl& engine, const Caller& caller) const;
  void run_with_others(Engine::Impl& engine, Caller& caller);

  // Of the last such step; by whoever holds `engine.steps`.
  std::vector<const Sequence*> last_;  ///< who took part; they may be gone, only the addresses are compared
  std::chrono::nanoseconds last_duration_{};
};

}  // namespace mimo_rt
