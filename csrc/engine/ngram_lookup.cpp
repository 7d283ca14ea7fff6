#include "engine/ngram_lookup.h"

#include <algorithm>

namespace mimo_rt {

void NgramLookup::reserve(uint32_t num_tokens) {
  token_ids_.reserve(num_tokens);
  previous_.reserve(num_tokens);
}

void NgramLookup::append(std::span<const int32_t> token_ids) {
  for (const int32_t id : token_ids) {
    uint32_t& last = last_[static_cast<size_t>(id)];
    previous_.push_back(last);
    last = size();
    token_ids_.push_back(id);
  }
}

void NgramLookup::clear() {
  for (const int32_t id : token_ids_) last_[static_cast<size_t>(id)] = kNone;
  token_ids_.clear();
  previous_.clear();
}

/// Of the tokens that end at `position` and those at the end of the text.
uint32_t NgramLookup::match_length(uint32_t position) const {
  const int32_t *here = &token_ids_[position], *end = &token_ids_.back();
  const uint32_t most = std::min(position + 1, kMaxLookupMatch);
  uint32_t length = 1;
  while (length < most && *(here - length) == *(end - length)) ++length;
  return length;
}

uint32_t NgramLookup::propose(std::span<int32_t> drafts) const {
  uint32_t longest = 0, begin = 0, num_visits = 0;
  const uint32_t first = previous_.empty() ? kNone : previous_.back();
  for (uint32_t at = first; at != kNone && longest < kMaxLookupMatch && num_visits < kMaxLookupVisits; at = previous_[at], ++num_visits) {
    const uint32_t length = match_length(at);
    if (length <= longest) continue;
    longest = length;
    begin = at + 1;
  }
  if (longest == 0) return 0;
  const uint32_t num_known = size() - begin;
  for (uint32_t i = 0; i < drafts.size(); ++i)
    drafts[i] = i < num_known ? token_ids_[begin + i] : drafts[i - num_known];
  return longest;
}

}  // namespace mimo_rt
