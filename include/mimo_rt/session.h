// One conversation: a KV cache, a position, and the loop that turns a prompt into tokens.
#pragma once

#include <mimo_rt/api.h>
#include <mimo_rt/draft.h>
#include <mimo_rt/engine.h>
#include <mimo_rt/sampling.h>
#include <mimo_rt/stats.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mimo_rt {

struct GenerateOptions {
  SamplingParams sampling;
  DraftOptions draft;                   ///< has no effect on an engine without drafts
  uint32_t max_tokens = 0;              ///< 0: until a stop or the end of the context
  uint32_t min_tokens = 0;              ///< stop tokens are masked before this many tokens
  std::vector<int32_t> stop_token_ids;  ///< added to the model's eos ids
  bool ignore_eos = false;              ///< stop only at stop_token_ids, stop, max_tokens
  std::vector<std::string> stop;        ///< stop strings, at most 16, each 1..1024 bytes; need a vocabulary
  bool include_stop_str_in_output = false;
  bool want_rounds = false;             ///< GenerateResult.rounds
};

enum class FinishReason : uint8_t { stop, length, abort };
MIMO_RT_API std::string_view finish_reason_name(FinishReason reason) noexcept;

/// What arrives while generating. `text` is held back while it is an incomplete UTF-8 character or may still become a
/// stop string; it is empty when the session has no vocabulary.
struct TokenEvent {
  std::span<const int32_t> token_ids;
  std::string_view text;
};
/// Returning false stops the generation (FinishReason::abort).
using TokenCallback = std::function<bool(const TokenEvent&)>;

struct TokenLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> alternatives;  ///< most likely first
};

struct GenerateResult {
  std::vector<int32_t> token_ids;          ///< output only; a stop token that ended it is included
  std::string text;                        ///< without special tokens and (by default) without the stop string
  FinishReason finish_reason = FinishReason::length;
  int32_t stop_token_id = -1;              ///< the token that stopped it, or -1
  std::string stop_string;                 ///< the string that stopped it, or empty
  std::vector<TokenLogprobs> logprobs;     ///< [token_ids.size()] when asked for
  std::vector<RoundStats> rounds;          ///< in turn, when asked for; not of tokens that were decoded without rounds
  GenerationStats stats;
};

struct SessionOptions {
  uint32_t max_context = 0;  ///< tokens; 0: min(max_position_embeddings, 8192)
  uint64_t sequence_id = 0;  ///< keys the random generator together with seed and position
};

/// One thread at a time, except `cancel` and `num_cached_tokens`. Moves, does not copy: a session that was moved from
/// answers every call but `cancel` with Error{invalid_argument}.
class MIMO_RT_API Session {
 public:
  /// @throws Error{invalid_argument, out_of_memory}
  Session(std::shared_ptr<Engine> engine, const SessionOptions& options = {});
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  /// Bytes of every token, for text and stop strings: read from a byte-level BPE `tokenizer.json`.
  /// @throws Error{io, bad_format, unsupported_shape}
  void load_vocabulary(const std::filesystem::path& tokenizer_json);

  /// Prefills what of `prompt` is not in the cache yet, then decodes. The cache keeps prompt and output: a following
  /// call whose prompt starts with them reuses the common prefix (bit-identical results either way).
  /// @throws Error{invalid_argument} (nothing changed), Error{capacity} the prompt does not fit, Error{timeout},
  ///         Error{out_of_memory}, Error{unavailable} in a fork, Error{internal} when no logit of a token is finite (the
  ///         weights are broken; the cache is empty then), on cuda also Error{device_lost}; and what `on_token` throws.
  GenerateResult generate(std::span<const int32_t> prompt, const GenerateOptions& options,
                          const TokenCallback& on_token = {});

  /// Logits of every position, appended to `out` as [tokens.size(), vocab_size]; the cache is rebuilt from scratch.
  /// `step_tokens`: rows per step, 0..prefill_chunk_tokens (0: the engine's choice); results do not depend on it.
  /// A step has logits of 64 rows (device 'cuda': 8) and runs once more for each so many.
  /// @throws as generate(); Error{cancelled} after cancel(), `out` is unchanged.
  void logits(std::span<const int32_t> tokens, std::vector<float>& out, uint32_t step_tokens = 0);

  /// What the draft predicts after `tokens`: logits of the positions behind the next one, appended to `out` as
  /// [block_size - 1, vocab_size], -infinity for tokens that the draft cannot propose; the cache is rebuilt from scratch.
  /// For checking a draft.
  /// @throws as logits(); Error{unavailable} without a draft, or on an exact engine.
  void draft_logits(std::span<const int32_t> tokens, std::vector<float>& out);

  /// From any thread: the running generate() returns within one step (of EngineOptions.prefill_chunk_tokens rows while
  /// it reads the prompt) with FinishReason::abort, and one that waits for the engine runs no further step. A cancel before the call begins has no effect.
  void cancel() noexcept;
  void reset();                    ///< forgets the cached tokens and gives their memory back
  uint32_t num_cached_tokens() const;
  uint32_t max_context() const;
  uint64_t kv_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mimo_rt
