// Drafts without a draft model: what followed the last tokens when they stood in the text before. Prompt and output are
// searched for the longest run that equals their end; texts that quote, list or repeat are full of them. A GPU searches by
// itself, in another way (cuda/device/tasks/look_up.cuh), and finds the same.
//
// Source: "Prompt Lookup Decoding" (A. Saxena, 2023), "ngram" in vLLM, with the longest match instead of a fixed length.
#pragma once

#include "sampling/round_rows.h"

#include <cstdint>
#include <span>
#include <vector>

namespace mimo_rt {

class NgramLookup {
 public:
  explicit NgramLookup(uint32_t vocab_size) : last_(vocab_size, kNone) {}

  uint32_t size() const { return static_cast<uint32_t>(token_ids_.size()); }
  std::span<const int32_t> token_ids() const { return token_ids_; }
  /// Room for so many tokens: until then append() allocates nothing. @throws std::bad_alloc
  void reserve(uint32_t num_tokens);
  void append(std::span<const int32_t> token_ids);
  /// Forgets all tokens.
  void clear();

  /// Proposes the tokens behind the last one, all of `drafts`, as they followed the longest match, of those the latest. A
  /// match that reaches the end of the text repeats itself.
  /// Returns the length of the match, 1..kMaxLookupMatch; 0: the last token stood nowhere before, and `drafts` is as it was.
  uint32_t propose(std::span<int32_t> drafts) const;

 private:
  static constexpr uint32_t kNone = ~0u;

  uint32_t match_length(uint32_t position) const;

  std::vector<int32_t> token_ids_;
  std::vector<uint32_t> previous_;  ///< [size()] the position of the same token before
  std::vector<uint32_t> last_;      ///< [vocab_size] the last position of a token
};

}  // namespace mimo_rt
