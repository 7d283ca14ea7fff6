// Times and counts of one generation, turned into GenerationStats at its end.
#pragma once

#include "engine/engine_impl.h"

#include <mimo_rt/stats.h>

#include <chrono>
#include <cstdint>

namespace mimo_rt {

class GenerationClock {
 public:
  /// Call when the request arrives.
  GenerationClock() : submit_(Clock::now()) {}

  void count_token();
  /// One step after the prefill.
  void count_step(const WeightBytes& weights, uint64_t active_experts);
  /// Rounds after the prefill; their active experts are summed.
  void count_rounds(const WeightBytes& weights, uint64_t num_rounds, uint64_t active_experts);
  /// Blocks that were drafted.
  void count_drafts(const WeightBytes& weights, uint64_t num_drafted_rounds);
  GenerationStats finish(uint64_t num_prompt_tokens, uint64_t num_cached_tokens,
                         double bandwidth_gbs) const;

 private:
  using Clock = std::chrono::steady_clock;

  Clock::time_point submit_, first_token_, last_token_;
  uint64_t num_tokens_ = 0, num_steps_ = 0, weight_bytes_ = 0;
};

}  // namespace mimo_rt
