// Numbers about generations, with units in the names.
#pragma once

#include <cstdint>

namespace mimo_rt {

/// Of one generation. TTFT, TPOT: definitions of vLLM (queue included; TPOT = (e2e - TTFT) / (output tokens - 1)).
struct GenerationStats {
  uint64_t num_prompt_tokens = 0;
  uint64_t num_cached_tokens = 0;      ///< prompt tokens whose KV was reused
  uint64_t num_output_tokens = 0;
  uint64_t num_steps = 0;              ///< engine steps after the prefill
  double ttft_ms = 0.0;                ///< submit to first token
  double tpot_ms = 0.0;                ///< 0 with fewer than two output tokens
  double e2e_ms = 0.0;
  double prefill_tokens_per_s = 0.0;
  double decode_tokens_per_s = 0.0;    ///< output tokens after the first, per second
  double weight_bytes_per_step = 0.0;  ///< mean over decode steps: packed weight bytes that the step had to read
  double decode_gbs = 0.0;             ///< weight bytes per second while decoding, GB = 1e9 bytes
  double bandwidth_fraction = 0.0;     ///< decode_gbs / Engine's measured read bandwidth; 0 when not measured
};

}  // namespace mimo_rt
