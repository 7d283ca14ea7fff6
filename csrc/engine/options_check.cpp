#include "engine/options_check.h"

#include "core/checks.h"
#include "core/text.h"

#include <cmath>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Session.generate";

// Written so that NaN fails every check.
void check_sampling(const SamplingParams& params) {
  MIMO_RT_CHECK(params.temperature >= 0.0f && std::isfinite(params.temperature), invalid_argument,
                kWhere, "temperature: expected >= 0 and finite, got ", params.temperature);
  MIMO_RT_CHECK(params.sample_top_p > 0.0f && params.sample_top_p <= 1.0f, invalid_argument,
                kWhere, "sample_top_p: expected > 0 and <= 1, got ", params.sample_top_p);
  MIMO_RT_CHECK(params.min_p >= 0.0f && params.min_p < 1.0f, invalid_argument, kWhere,
                "min_p: expected >= 0 and < 1, got ", params.min_p);
  MIMO_RT_CHECK(params.repetition_penalty > 0.0f && std::isfinite(params.repetition_penalty),
                invalid_argument, kWhere, "repetition_penalty: expected > 0 and finite, got ",
                params.repetition_penalty);
  MIMO_RT_CHECK(params.num_logprobs <= kMaxLogprobs, invalid_argument, kWhere,
                "num_logprobs: expected 0..", kMaxLogprobs, ", got ", params.num_logprobs);
}

void check_logit_bias(const std::vector<TokenBias>& biases, uint32_t vocab_size) {
  for (size_t i = 0; i < biases.size(); ++i) {
    const auto& [token_id, bias] = biases[i];
    MIMO_RT_CHECK(token_id >= 0 && static_cast<uint32_t>(token_id) < vocab_size, invalid_argument,
                  kWhere, "logit_bias[", i, "]: expected a token id in 0..", vocab_size - 1,
                  ", got ", token_id);
    MIMO_RT_CHECK(i == 0 || token_id > biases[i - 1].token_id, invalid_argument, kWhere,
                  "logit_bias[", i, "]: expected ascending token ids, got ", token_id, " after ",
                  i ? biases[i - 1].token_id : 0);
    MIMO_RT_CHECK(std::abs(bias) <= kMaxLogitBias, invalid_argument, kWhere, "logit_bias[", i,
                  "]: expected a bias in -", kMaxLogitBias, "..", kMaxLogitBias, ", got ", bias);
  }
}

void check_stop_strings(const std::vector<std::string>& stop, bool has_vocabulary) {
  MIMO_RT_CHECK(stop.empty() || has_vocabulary, invalid_argument, kWhere,
                "stop: expected no stop strings without a vocabulary, got ", stop.size(),
                ". Call load_vocabulary first.");
  MIMO_RT_CHECK(stop.size() <= kMaxStopStrings, invalid_argument, kWhere, "stop: expected at most ",
                kMaxStopStrings, " strings, got ", stop.size());
  for (size_t i = 0; i < stop.size(); ++i) {
    MIMO_RT_CHECK(!stop[i].empty() && stop[i].size() <= kMaxStopBytes, invalid_argument, kWhere,
                  "stop[", i, "]: expected 1..", kMaxStopBytes, " bytes, got ", stop[i].size());
    MIMO_RT_CHECK(is_valid_utf8(stop[i]), invalid_argument, kWhere, "stop[", i,
                  "]: expected valid UTF-8, got other bytes");
  }
}

}  // namespace

void check_tokens(std::span<const int32_t> tokens, uint32_t vocab_size, const char* where,
                  const char* name) {
  MIMO_RT_CHECK(!tokens.empty(), invalid_argument, where, name,
                ": expected at least one token, got none");
  for (size_t i = 0; i < tokens.size(); ++i)
    MIMO_RT_CHECK(tokens[i] >= 0 && static_cast<uint32_t>(tokens[i]) < vocab_size,
                  invalid_argument, where, name, '[', i, "]: expected 0..", vocab_size - 1,
                  ", got ", tokens[i]);
}

void check_generate_options(const GenerateOptions& options, uint32_t vocab_size,
                            bool has_vocabulary, const DraftConfig* draft) {
  check_sampling(options.sampling);
  check_logit_bias(options.sampling.logit_bias, vocab_size);
  check_stop_strings(options.stop, has_vocabulary);
  MIMO_RT_CHECK(options.stop_token_ids.size() <= kMaxStopTokenIds, invalid_argument, kWhere,
                "stop_token_ids: expected at most ", kMaxStopTokenIds, ", got ",
                options.stop_token_ids.size());
  if (!options.stop_token_ids.empty())
    check_tokens(options.stop_token_ids, vocab_size, kWhere, "stop_token_ids");
  MIMO_RT_CHECK(options.max_tokens == 0 || options.min_tokens <= options.max_tokens,
                invalid_argument, kWhere, "min_tokens: expected <= max_tokens (",
                options.max_tokens, "), got ", options.min_tokens);
  MIMO_RT_CHECK(!draft || options.draft.num_draft_tokens < draft->block_size, invalid_argument,
                kWhere, "num_draft_tokens: expected 0..", draft->block_size - 1,
                " (the draft's block_size - 1), got ", options.draft.num_draft_tokens);
}

}  // namespace mimo_rt
