// One step for the rows of one or several sequences.
#pragma once

#include "engine/sequence.h"

#include <span>

namespace mimo_rt {

/// What one sequence wants of a step; arguments as of Sequence::step.
struct StepRequest {
  Sequence* sequence = nullptr;
  std::span<const int32_t> tokens;
  std::span<const uint32_t> logit_rows;
  const SampleRequest* sample = nullptr;
  StepOutput* output = nullptr;
};

/// Runs one step that appends the tokens of every request to its sequence: at most Impl::max_step_tokens() tokens in
/// all, with at most Impl::max_logit_rows rows of logits. Several requests: each samples what it wants logits of, no
/// sequence comes twice, and the executor joins sequences. The first sequence gets the context that a draft model waits
/// for. `active_experts` are those of the whole step. The caller holds `engine.steps`. On an exception all sequences are as
/// before.
void run_step(Engine::Impl& engine, std::span<const StepRequest> requests);

}  // namespace mimo_rt
