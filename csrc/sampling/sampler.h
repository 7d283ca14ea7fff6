// Turns logits into a token: penalties, temperature, top-k, top-p, min-p, and a counter-based
// generator.
//
// Order (as in vLLM): logit bias -> repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw.
// temperature 0 is greedy (the lowest index among equal maxima). The uniform number is a pure
// function of (seed, sequence id, position), so a token does not depend on batch, worker count, or
// how the text before it was decoded. Scores are float64 from FP32 logits; probabilities relative
// to the best token become integers (45 bits for vocabularies below 2^18), so sums are
// exact and have no order: the same draws on every backend given equal logits.
#pragma once

#include <mimo_rt/sampling.h>

#include <algorithm>
#include <cstdint>

namespace mimo_rt {

/// Logits of one position. With `ids`, logit i is that of token ids[i]; without, of token i.
struct LogitRow {
  const float* logits;
  uint32_t size;
  const int32_t* ids = nullptr;  ///< [size] ascending
  uint32_t num_left_out = 0;     ///< logits of the row that are not here because top-k leaves them out anyway

  uint32_t token_id(uint32_t i) const { return ids ? static_cast<uint32_t>(ids[i]) : i; }
  /// The first logit, or `size`, whose token is not below `token_id`.
  uint32_t lower_bound(uint32_t token_id) const {
    if (!ids) return std::min(token_id, size);
    return static_cast<uint32_t>(std::lower_bound(ids, ids + size, static_cast<int64_t>(token_id)) - ids);
  }
};

/// Everything the `sample` task needs for one row of logits.
struct SampleRequest {
  const SamplingParams* params = nullptr;
  /// [vocab_size] occurrences so far; nullptr unless repetition_penalty != 1
  const uint32_t* token_counts = nullptr;
  const int32_t* masked_ids = nullptr;     ///< [num_masked_ids] may not be drawn; ascending, unique
  uint32_t num_masked_ids = 0;
  uint64_t sequence_id = 0;
  uint32_t position = 0;                   ///< of the token to be drawn
  void* scratch = nullptr;  ///< sampler_scratch_bytes(vocab_size), 16-byte aligned, of this row
  /// The row holds a draft for the token of the row before, which is of the same sequence. Nobody reads what is drawn for
  /// it unless that token is the draft: see skips_row. Such rows may have the scratch of the row before.
  bool holds_draft = false;
};

struct SampleResult {
  int32_t token_id = -1;
  float logprob = 0.0f;                    ///< of the chosen token, when want_logprob
  uint32_t num_alternatives = 0;
  TokenLogprob alternatives[kMaxLogprobs];
};

/// A token without logprobs.
inline void set_token(int32_t token_id, SampleResult& result) {
  result.token_id = token_id;
  result.logprob = 0.0f;
  result.num_alternatives = 0;
}

uint64_t sampler_scratch_bytes(uint32_t vocab_size);

/// No allocation; deterministic. NaN and infinite logits never win; a row without any finite logit
/// outside the mask gives token_id -1 (the caller turns it into an error). Logprobs are those of
/// the raw logits, masked tokens included; filled when want_logprob is set or num_logprobs > 0.
void sample_token(const LogitRow& row, const SampleRequest& request, SampleResult& result);

/// Logprobs of result.token_id and the alternatives, if the request wants them: then of a whole row.
void fill_logprobs(const LogitRow& row, const SampleRequest& request, SampleResult& result);

/// The candidate with the highest score (the lowest id among equals), whatever the temperature; -1
/// without any. Needs no scratch.
int32_t best_token(const LogitRow& row, const SampleRequest& request);

/// The logit of `token_id` minus the largest one of all others; 0 when the row has no such token.
float logit_lead(const LogitRow& row, int32_t token_id);

inline constexpr uint32_t kMaxBestLogits = 64;

/// How many of the best logits of a row, whichever tokens they are of, decide its token while nothing else is wanted of
/// the row: then so many of each part of the row are enough. 0: all may matter, or more than kMaxBestLogits. So with
/// penalties and biases, and with masked tokens, which may be the best of their parts.
uint32_t num_best_logits(const SampleRequest& request);

}  // namespace mimo_rt
