// The best logits of a row, kept while the row is computed: all that a token needs which is drawn among them.
#pragma once

#include "sampling/candidate_set.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

namespace mimo_rt {

struct BestLogit {
  float logit;
  int32_t token_id;
};

/// As ByScore: of equal logits the first in the vocabulary is better.
inline bool is_better(const BestLogit& a, const BestLogit& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token_id < b.token_id);
}

/// The k best of the finite logits that it has been shown, in whatever order they came. Uninitialised before `begin`.
class alignas(64) BestLogits {
 public:
  /// Forgets all. 1 <= k <= kMaxBestLogits.
  void begin(uint32_t k) {
    k_ = k;
    size_ = 0;
    least_ = -std::numeric_limits<float>::max();
  }
  /// Logits of the tokens first_id, first_id + 1, …
  void add(const float* logits, uint32_t num_logits, int32_t first_id);
  /// Those that another has kept.
  void add(const BestLogits& other) {
    for (const BestLogit& found : other.entries()) insert(found);
  }
  /// The best first.
  std::span<const BestLogit> entries() const { return {entries_, size_}; }

 private:
  void insert(const BestLogit& found) {
    if (size_ == k_ && !is_better(found, entries_[k_ - 1])) return;
    uint32_t place = size_ == k_ ? k_ - 1 : size_++;
    for (; place > 0 && is_better(found, entries_[place - 1]); --place) entries_[place] = entries_[place - 1];
    entries_[place] = found;
    if (size_ == k_) least_ = entries_[k_ - 1].logit;
  }
  /// Whether one of kScanBlock logits may be among the best: the worst of these loses to an equal one with a lower id,
  /// which may come later.
  bool any_may_enter(const float* logits) const {
    int count = 0;
    for (uint32_t i = 0; i < kScanBlock; ++i) count += logits[i] >= least_;
    return count > 0;
  }

  uint32_t k_, size_;
  float least_;  ///< logits below are not among the best
  BestLogit entries_[kMaxBestLogits];
};

inline void BestLogits::add(const float* logits, uint32_t num_logits, int32_t first_id) {
  for (uint32_t block = 0; block < num_logits; block += kScanBlock) {
    const uint32_t size = std::min(kScanBlock, num_logits - block);
    if (size == kScanBlock && !any_may_enter(logits + block)) continue;
    for (uint32_t i = block; i < block + size; ++i)
      if (is_finite(logits[i]) && logits[i] >= least_) insert({logits[i], first_id + static_cast<int32_t>(i)});
  }
}

/// The same as a row of logits.
class BestLogitRow {
 public:
  /// Uninitialised.
  BestLogitRow() = default;
  BestLogitRow(const BestLogits& best, uint32_t vocab_size) {
    BestLogit by_id[kMaxBestLogits];
    const auto last = std::copy(best.entries().begin(), best.entries().end(), by_id);
    std::sort(by_id, last, [](const BestLogit& a, const BestLogit& b) { return a.token_id < b.token_id; });
    size_ = static_cast<uint32_t>(last - by_id);
    num_left_out_ = vocab_size - size_;
    for (uint32_t i = 0; i < size_; ++i) {
      logits_[i] = by_id[i].logit;
      ids_[i] = by_id[i].token_id;
    }
  }
  /// A view.
  LogitRow row() const { return {logits_, size_, ids_, num_left_out_}; }

 private:
  uint32_t size_, num_left_out_;
  float logits_[kMaxBestLogits];
  int32_t ids_[kMaxBestLogits];
};

}  // namespace mimo_rt
