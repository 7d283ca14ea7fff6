// One sequence of tokens with its KV cache: the two never disagree, whatever a step throws.
#pragma once

#include "engine/engine_impl.h"
#include "engine/round.h"
#include "kv/kv_cache.h"

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

namespace mimo_rt {

class Sequence {
 public:
  /// `max_step_tokens`: rows that a step or a round may write.
  Sequence(const ModelConfig& config, const DraftConfig* draft, uint32_t max_context,
           uint32_t max_step_tokens);

  /// Ids whose keys and values are in the cache.
  const std::vector<int32_t>& token_ids() const { return token_ids_; }
  uint32_t size() const { return static_cast<uint32_t>(token_ids_.size()); }
  /// size() after the last step, readable while another thread runs one.
  uint32_t num_cached_tokens() const { return num_cached_; }
  const KvCache& cache() const { return cache_; }
  /// With a draft model: tokens whose keys and values it has not made.
  uint32_t num_pending_context() const { return size() - num_context_; }

  /// Makes room for keys and values where the executor keeps them. @throws Error{out_of_memory}
  void prepare(Executor& executor) { executor.prepare(cache_); }

  /// Forgets what does not begin `tokens`; keeps at most `max_kept` tokens. Keeps nothing when the
  /// window layers' rings have lost what a continuation there would read.
  void keep_common_prefix(std::span<const int32_t> tokens, uint32_t max_kept);

  /// Forgets all behind the first `num_tokens`, drafts of the step before that were not confirmed.
  void keep_first(uint32_t num_tokens);

  /// Forgets all tokens and gives the memory of their keys and values back to the system.
  void release();

  /// Runs one step that appends `tokens` (at most Impl::max_step_tokens()). Logits are computed for
  /// the rows `logit_rows`; `sample` and `output.sampled` as in StepInput. The caller holds
  /// `engine.steps`. On an exception the sequence is as before. See also run_step.
  void step(Engine::Impl& engine, std::span<const int32_t> tokens,
            std::span<const uint32_t> logit_rows, const SampleRequest* sample, StepOutput& output);

  /// Runs rounds that continue from the anchor state.block[0], which follows the tokens held here,
  /// until state.end says why not. `on_token` is called on this thread for every token; returning
  /// false asks the rounds to stop, and tokens that come after that are kept here but not shown.
  /// The caller holds `engine.steps`. On an exception of `on_token` the sequence holds all that
  /// the rounds made; on any other it is as before.
  void run_rounds(Engine::Impl& engine, RoundState& state,
                  const std::function<bool(const SampleResult&)>& on_token);

 private:
  friend class StepBatch;
  void append(std::span<const int32_t> tokens);
  void keep_appended(uint32_t num_context_rows);  ///< that the step made
  void drop_from(uint32_t begin);
  void settle_rounds(const RoundState& state, uint32_t block_size);
  void note_written(uint32_t position, uint32_t block_size);

  KvCache cache_;
  std::vector<int32_t> token_ids_;
  std::atomic<uint32_t> num_cached_ = 0;
  uint32_t most_tokens_ = 0;  ///< that steps wrote since the sequence was empty
  uint32_t num_context_ = 0;  ///< tokens whose keys and values the draft has
};

}  // namespace mimo_rt
