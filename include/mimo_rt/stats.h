// Numbers about generations, with units in the names.
#pragma once

#include <array>
#include <cstdint>

namespace mimo_rt {

/// Speculative decoding of one generation. Names and definitions as in vLLM and aiperf: acceptance length counts the
/// token that every round emits beyond the accepted drafts: emitted = num_rounds + num_accepted_tokens. In a block that
/// a stop cuts short, the last emitted token is the round's own, and drafts from there on count as neither proposed nor
/// accepted; only width_histogram has the width that was run.
struct DraftStats {
  static constexpr uint32_t kMaxDrafts = 15;
  uint64_t num_rounds = 0;           ///< verification steps, those without a draft included
  uint64_t num_drafted_rounds = 0;   ///< those that verified drafts
  uint64_t num_draft_tokens = 0;     ///< proposed and verified
  uint64_t num_accepted_tokens = 0;
  std::array<uint64_t, kMaxDrafts> accepted_at_pos{};   ///< [i] drafted rounds that accepted draft i + 1
  std::array<uint64_t, kMaxDrafts> drafted_at_pos{};    ///< [i] drafted rounds that verified draft i + 1
  std::array<uint64_t, kMaxDrafts + 1> accepted_histogram{};  ///< [n] rounds that accepted n drafts
  std::array<uint64_t, kMaxDrafts + 1> width_histogram{};     ///< [n] rounds that verified n drafts

  double acceptance_length() const {  ///< 1 + accepted / rounds; 0 without rounds
    return num_rounds ? 1.0 + static_cast<double>(num_accepted_tokens) / static_cast<double>(num_rounds) : 0.0;
  }
  double acceptance_rate() const {    ///< accepted / proposed; 0 without proposals
    return num_draft_tokens ? static_cast<double>(num_accepted_tokens) / static_cast<double>(num_draft_tokens) : 0.0;
  }
};

/// One round of draft, verify and accept.
struct RoundStats {
  uint64_t ns = 0;                  ///< since the round before; on a GPU by its own clock, but for the first of a launch
  uint32_t num_rows = 0;            ///< verified: the anchor and drafts
  uint32_t num_drafts = 0;          ///< of them those that count as proposed, see DraftStats
  uint32_t num_tokens = 0;          ///< of the output: 1 + accepted drafts
  double num_active_experts = 0.0;  ///< summed over the layers; CPU backends: the mean of rounds that ran as one job
};

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
  double weight_bytes_per_step = 0.0;  ///< mean over decode steps: packed weight bytes that the step had to read, for all sessions that shared it
  double decode_gbs = 0.0;             ///< weight bytes per second while decoding, GB = 1e9 bytes
  double bandwidth_fraction = 0.0;     ///< decode_gbs / Engine's measured read bandwidth; 0 when not measured
  DraftStats draft;                    ///< all zero without drafts
};

}  // namespace mimo_rt
