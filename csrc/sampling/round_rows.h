// Which rows a round of draft, verify and accept has: decided once, for the CPU's rounds and for those that a GPU runs
// by itself. For g++ and nvcc.
#pragma once

#include "core/host_device.h"

#include <cstdint>

namespace mimo_rt {

// Of drafts that are looked up in the text: see engine/ngram_lookup.h.
inline constexpr uint32_t kMaxLookupMatch = 16;    ///< longer matches say no more about what follows
inline constexpr uint32_t kMaxLookupVisits = 512;  ///< occurrences of the last token that are looked at, from the latest on

/// Rounds that do not draft leave the draft's context until about so many rows are pending: they cost less in one pass.
inline constexpr uint32_t kLazyContextRows = 64;

/// What is left for a round when it begins.
struct RoundRoom {
  uint64_t num_tokens;     ///< of the generation's output; at least 1
  uint32_t num_positions;  ///< of the KV cache; at least 1
  uint32_t num_pending;    ///< positions whose keys and values the draft has not made; 0 without a draft model
  uint32_t max_context_rows, block_size;

  /// Rows behind the anchor. None while the draft would not see all of the text.
  MIMO_RT_HOST_DEVICE uint32_t max_drafts() const {
    if (num_pending > max_context_rows) return 0;
    uint32_t num_rows = block_size;
    if (num_tokens < num_rows) num_rows = static_cast<uint32_t>(num_tokens);
    if (num_positions < num_rows) num_rows = num_positions;
    return num_rows - 1;
  }
  /// Rows of context to make: all pending ones, as far as there is room for them, when the round drafts or when they
  /// become many. A round that does not draft adds one, and leaves no more than one that drafts can take.
  MIMO_RT_HOST_DEVICE uint32_t num_context_rows(bool drafts) const {
    const uint32_t most_pending = kLazyContextRows < max_context_rows ? kLazyContextRows : max_context_rows;
    if (!drafts && num_pending < most_pending) return 0;
    return num_pending < max_context_rows ? num_pending : max_context_rows;
  }
};

/// Rows of a round, `max_rows` at most, whose tokens come before the `min_tokens`th of the output.
MIMO_RT_HOST_DEVICE constexpr uint32_t num_masked_rows(uint64_t min_tokens, uint64_t num_output, uint32_t max_rows) {
  if (num_output >= min_tokens) return 0;
  const uint64_t num_rows = min_tokens - num_output;
  return num_rows < max_rows ? static_cast<uint32_t>(num_rows) : max_rows;
}

}  // namespace mimo_rt
