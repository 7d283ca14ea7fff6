#include "engine/generation_clock.h"

namespace mimo_rt {
namespace {

double ratio(double numerator, double denominator) {
  return denominator > 0.0 ? numerator / denominator : 0.0;
}

}  // namespace

void GenerationClock::count_token() {
  last_token_ = Clock::now();
  if (num_tokens_++ == 0) first_token_ = last_token_;
}

void GenerationClock::count_step(const WeightBytes& weights, uint64_t active_experts) {
  count_rounds(weights, 1, active_experts);
}

void GenerationClock::count_rounds(const WeightBytes& weights, uint64_t num_rounds,
                                   uint64_t active_experts) {
  num_steps_ += num_rounds;
  weight_bytes_ += num_rounds * weights.dense_per_step + active_experts * weights.per_expert;
}

void GenerationClock::count_drafts(const WeightBytes& weights, uint64_t num_drafted_rounds) {
  weight_bytes_ += num_drafted_rounds * weights.per_draft;
}

GenerationStats GenerationClock::finish(uint64_t num_prompt_tokens, uint64_t num_cached_tokens,
                                        double bandwidth_gbs) const {
  const auto seconds = [](Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
  };
  GenerationStats stats;
  stats.num_prompt_tokens = num_prompt_tokens;
  stats.num_cached_tokens = num_cached_tokens;
  stats.num_output_tokens = num_tokens_;
  stats.num_steps = num_steps_;
  stats.e2e_ms = 1e3 * seconds(submit_, Clock::now());
  if (num_tokens_ == 0) return stats;
  const double prefill_s = seconds(submit_, first_token_);
  const double decode_s = seconds(first_token_, last_token_);
  const auto num_later = static_cast<double>(num_tokens_ - 1);
  stats.ttft_ms = 1e3 * prefill_s;
  stats.tpot_ms = 1e3 * ratio(decode_s, num_later);
  stats.prefill_tokens_per_s =
      ratio(static_cast<double>(num_prompt_tokens - num_cached_tokens), prefill_s);
  stats.decode_tokens_per_s = ratio(num_later, decode_s);
  const auto bytes = static_cast<double>(weight_bytes_);
  stats.weight_bytes_per_step = ratio(bytes, static_cast<double>(num_steps_));
  stats.decode_gbs = 1e-9 * ratio(bytes, decode_s);
  stats.bandwidth_fraction = ratio(stats.decode_gbs, bandwidth_gbs);
  return stats;
}

}  // namespace mimo_rt
