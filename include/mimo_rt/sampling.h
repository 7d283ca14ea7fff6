// How the next token is chosen.
#pragma once

#include <cstdint>
#include <vector>

namespace mimo_rt {

struct TokenBias {
  int32_t token_id;
  float bias;
  bool operator==(const TokenBias&) const = default;
};

struct SamplingParams {
  float temperature = 1.0f;         ///< >= 0; 0 = greedy
  uint32_t sample_top_k = 0;        ///< 0 = off
  float sample_top_p = 1.0f;        ///< (0, 1]
  float min_p = 0.0f;               ///< [0, 1)
  float repetition_penalty = 1.0f;  ///< > 0; 1 = off; applies to tokens of prompt and output
  uint64_t seed = 0;
  uint32_t num_logprobs = 0;        ///< alternatives to report, 0..20; 0 still reports the chosen token when wanted
  bool want_logprob = false;
  std::vector<TokenBias> logit_bias = {};  ///< in [-100, 100], added to the logit first; ids ascending and unique
};

inline constexpr uint32_t kMaxLogprobs = 20;
inline constexpr float kMaxLogitBias = 100.0f;  ///< as OpenAI's API

struct TokenLogprob {
  int32_t token_id;
  float logprob;  ///< log softmax of the raw logits (before penalties and temperature), as OpenAI and vLLM report it
};

}  // namespace mimo_rt
