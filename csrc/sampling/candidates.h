// Selection among candidate tokens without a full sort: the best k, and the place where a running
// sum of integer weights reaches a target. Both are O(n) and independent of the order of the input.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace mimo_rt {

struct Candidate {
  double score;     ///< logit after penalties, before temperature
  uint64_t weight;  ///< fixed-point probability relative to the best candidate
  uint32_t token_id;
};

/// Best first; equal scores: the lower id first. A total order, so every selection is unique.
struct ByScore {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.score != b.score ? a.score > b.score : a.token_id < b.token_id;
  }
};

struct ByTokenId {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.token_id < b.token_id;
  }
};

/// Keeps the k best of a stream in a buffer of `capacity` > k candidates: when it is full, a
/// partial selection throws the worse ones away; what is worse than the kth best is never stored.
class TopSelector {
 public:
  TopSelector(Candidate* buffer, uint32_t capacity, uint32_t k)
      : buffer_(buffer), capacity_(capacity), k_(k) {}

  void add(double score, uint32_t token_id) {
    // Ids arrive in ascending order: an equal score with a higher id loses against the kth best.
    if (score <= limit_) return;
    buffer_[size_++] = {score, 0, token_id};
    if (size_ == capacity_) shrink();
  }

  /// Scores up to here cannot be among the k best.
  double limit() const { return limit_; }

  /// The k best (or all, when fewer were added) in buffer[0, result), in no particular order.
  uint32_t finish() {
    if (size_ > k_) shrink();
    return size_;
  }

  static uint32_t capacity_for(uint32_t k, uint32_t num_candidates) {
    if (k > num_candidates / 2) return num_candidates;
    return std::min(num_candidates, std::max<uint32_t>(512, 2 * k));
  }

 private:
  void shrink() {
    std::nth_element(buffer_, buffer_ + k_ - 1, buffer_ + size_, ByScore{});
    size_ = k_;
    limit_ = buffer_[k_ - 1].score;
  }

  Candidate* buffer_;
  uint32_t capacity_, k_;
  uint32_t size_ = 0;
  double limit_ = -HUGE_VAL;
};

inline uint64_t total_weight(const Candidate* first, const Candidate* last) {
  uint64_t sum = 0;
  for (; first != last; ++first) sum += first->weight;
  return sum;
}

/// The candidate at which the running sum of weights, taken in the order `less`, reaches `target`
/// (1 <= target <= total weight). Permutes: afterwards everything before it comes first in `less`.
template <typename Less>
Candidate* select_by_weight(Candidate* first, Candidate* last, uint64_t target, Less less) {
  while (last - first > 32) {
    Candidate* middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, less);
    const uint64_t weight = total_weight(first, middle);
    if (weight >= target) {
      last = middle;
    } else {
      target -= weight;
      first = middle;
    }
  }
  std::sort(first, last, less);
  for (; first + 1 < last && first->weight < target; ++first) target -= first->weight;
  return first;
}

}  // namespace mimo_rt
