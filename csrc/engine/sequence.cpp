#include "engine/sequence.h"

#include "core/checks.h"
#include "engine/step_batch.h"

#include <algorithm>
#include <utility>

namespace mimo_rt {

Sequence::Sequence(const ModelConfig& config, const DraftConfig* draft, uint32_t max_context,
                   uint32_t max_step_tokens)
    : cache_(config, {.max_context = max_context, .max_step_tokens = max_step_tokens, .num_seqs = 1}, draft) {}

void Sequence::keep_common_prefix(std::span<const int32_t> tokens, uint32_t max_kept) {
  const auto mismatch =
      std::mismatch(token_ids_.begin(), token_ids_.end(), tokens.begin(), tokens.end()).first;
  auto kept = std::min(static_cast<uint32_t>(mismatch - token_ids_.begin()), max_kept);
  // Features that the draft's context still needs must not have been overwritten.
  const uint32_t feature_rows = cache_.feature_rows();  // 0 without a draft
  if (feature_rows && most_tokens_ > num_context_ + feature_rows) kept = std::min(kept, num_context_);
  if (!cache_.can_truncate(most_tokens_, kept)) kept = 0;
  cache_.truncate(0, kept);
  token_ids_.resize(kept);
  num_context_ = std::min(num_context_, kept);
  if (kept == 0) most_tokens_ = 0;
  num_cached_ = kept;
}

void Sequence::step(Engine::Impl& engine, std::span<const int32_t> tokens,
                    std::span<const uint32_t> logit_rows, const SampleRequest* sample,
                    StepOutput& output) {
  const StepRequest request{this, tokens, logit_rows, sample, &output};
  run_step(engine, {&request, 1});
}

void Sequence::append(std::span<const int32_t> tokens) {
  token_ids_.insert(token_ids_.end(), tokens.begin(), tokens.end());
  cache_.reserve(0, size());
  most_tokens_ = std::max(most_tokens_, size());
}

void Sequence::keep_appended(uint32_t num_context_rows) {
  num_context_ += num_context_rows;
  num_cached_ = size();
}

void Sequence::drop_from(uint32_t begin) {
  token_ids_.resize(begin);
  cache_.truncate(0, begin);
}

void Sequence::keep_first(uint32_t num_tokens) {
  drop_from(num_tokens);
  num_cached_ = size();
}

void Sequence::run_rounds(Engine::Impl& engine, RoundState& state,
                          const std::function<bool(const SampleResult&)>& on_token) {
  const uint32_t begin = size(), block_size = engine.round_plan->options().max_tokens;
  state.position = begin;
  state.num_context = num_context_;
  int32_t anchor = state.block[0];  // the next token to get keys and values
  uint64_t num_read = state.ring.num_pushed();
  bool wants_more = true, poll_failed = false;
  const auto read_token = [&] {
    const SampleResult token = state.ring[num_read];
    state.ring.release(++num_read);
    token_ids_.push_back(std::exchange(anchor, token.token_id));
    return token;
  };
  const auto poll = [&] {
    try {
      while (num_read < state.ring.num_pushed()) {
        const SampleResult token = read_token();
        if (wants_more && !on_token(token)) wants_more = false;
      }
      // Seen before the next token: on a GPU the round after the running one would run, too.
      if (!wants_more || engine.steps.num_waiting() > 0) state.stop_requested = true;
    } catch (...) {
      poll_failed = true;
      throw;
    }
  };
  // read_token must not throw: what it has read is gone.
  const RoundRequest& request = state.request;
  token_ids_.reserve(begin + std::min<uint64_t>(request.max_tokens - state.num_output, request.max_context - begin));
  try {
    cache_.reserve(0, request.max_context);
    state.begin();
    engine.executor->run_rounds(*engine.round_plan, cache_, state, poll);
    engine.last_plan = &*engine.round_plan;
  } catch (...) {
    if (poll_failed) {
      while (num_read < state.ring.num_pushed()) read_token();
      settle_rounds(state, block_size);
    } else {
      note_written(state.position, block_size);
      drop_from(begin);
    }
    throw;
  }
  settle_rounds(state, block_size);
}

void Sequence::settle_rounds(const RoundState& state, uint32_t block_size) {
  MIMO_RT_CHECK(size() == state.position, internal, "Sequence.run_rounds", "expected ",
                state.position, " tokens after the last round, got ", size());
  num_context_ = state.num_context;
  note_written(size(), block_size);
  cache_.truncate(0, size());
  num_cached_ = size();
}

void Sequence::note_written(uint32_t position, uint32_t block_size) {
  const uint32_t end = std::min(position + block_size, cache_.max_context());  // rejected rows, too
  most_tokens_ = std::max(most_tokens_, end);
}

void Sequence::release() {
  keep_common_prefix({}, 0);
  cache_.release_memory();
}

}  // namespace mimo_rt
