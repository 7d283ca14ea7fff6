#include "engine/sequence.h"

#include <algorithm>
#include <numeric>

namespace mimo_rt {

Sequence::Sequence(const ModelConfig& config, uint32_t max_context, uint32_t max_step_tokens)
    : cache_(config, {.max_context = max_context,
                      .max_step_tokens = std::min(max_step_tokens, max_context),
                      .num_seqs = 1}) {}

void Sequence::keep_common_prefix(std::span<const int32_t> tokens, uint32_t max_kept) {
  const auto mismatch =
      std::mismatch(token_ids_.begin(), token_ids_.end(), tokens.begin(), tokens.end()).first;
  auto kept = std::min(static_cast<uint32_t>(mismatch - token_ids_.begin()), max_kept);
  if (!cache_.can_truncate(most_tokens_, kept)) kept = 0;
  cache_.truncate(0, kept);
  token_ids_.resize(kept);
  if (kept == 0) most_tokens_ = 0;
  num_cached_ = kept;
}

void Sequence::step(Engine::Impl& engine, std::span<const int32_t> tokens,
                    std::span<const uint32_t> logit_rows, const SampleRequest* sample,
                    StepOutput& output) {
  const auto num_tokens = static_cast<uint32_t>(tokens.size());
  const uint32_t begin = size();
  positions_.resize(num_tokens);
  std::iota(positions_.begin(), positions_.end(), begin);
  seq_idx_.assign(num_tokens, 0);
  token_ids_.insert(token_ids_.end(), tokens.begin(), tokens.end());
  try {
    cache_.reserve(0, size());
    most_tokens_ = std::max(most_tokens_, size());
    StepInput input;
    input.num_tokens = num_tokens;
    input.token_ids = token_ids_.data() + begin;
    input.seq_idx = seq_idx_.data();
    input.positions = positions_.data();
    input.num_logit_rows = static_cast<uint32_t>(logit_rows.size());
    input.logit_rows = logit_rows.data();
    input.sample = sample;
    const Plan& plan = engine.plan_for(num_tokens);
    engine.executor->run(plan, cache_, input, output);
    engine.last_plan = &plan;  // not before: a refused step leaves no trace
  } catch (...) {
    token_ids_.resize(begin);
    cache_.truncate(0, begin);
    throw;
  }
  num_cached_ = size();
}

void Sequence::release() {
  keep_common_prefix({}, 0);
  cache_.release_memory();
}

}  // namespace mimo_rt
