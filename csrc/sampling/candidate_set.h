// The candidates of one row of logits: what may be drawn, with which weight. Every way of choosing a token goes through
// here or through weight_blocks.h, which tests/cpp/test_sampler.cpp holds to the same masks, biases and penalties.
#pragma once

#include "sampling/arithmetic.h"
#include "sampling/candidates.h"
#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>

namespace mimo_rt {

inline constexpr uint32_t kNoToken = ~0u;

/// for_each_candidate for a row with ids, or for one without: whole rows are long, and this is their inner loop.
template <bool kHasIds, typename Visit>
void visit_candidates(const LogitRow& row, const SampleRequest& request, Visit& visit) {
  const double penalty = request.params->repetition_penalty;
  const uint32_t* counts = penalty == 1.0 ? nullptr : request.token_counts;
  const auto& biases = request.params->logit_bias;
  auto next_bias = biases.begin();
  const auto visit_one = [&](uint32_t i, double bias) {
    const uint32_t id = kHasIds ? static_cast<uint32_t>(row.ids[i]) : i;
    const float logit = row.logits[i];
    if (!is_finite(logit)) return;
    visit(candidate_score(logit, bias, counts && counts[id], penalty), id);
  };
  uint32_t num_masked = 0;
  for (uint32_t i = 0;;) {
    const auto masked =
        num_masked < request.num_masked_ids ? static_cast<uint32_t>(request.masked_ids[num_masked]) : kNoToken;
    const auto biased = next_bias != biases.end() ? static_cast<uint32_t>(next_bias->token_id) : kNoToken;
    const uint32_t special = std::min(masked, biased);
    for (const uint32_t end = row.lower_bound(special); i < end; ++i) visit_one(i, 0.0);
    if (i == row.size) return;
    if (row.token_id(i) == special) {  // else the row has no logit of it
      if (special != masked) visit_one(i, next_bias->bias);
      ++i;
    }
    num_masked += special == masked;
    next_bias += special == biased;
  }
}

/// visit(score, token_id) for every candidate, ids ascending; a score is the logit with bias and penalty. Leaves out
/// what is masked or not finite.
template <typename Visit>
void for_each_candidate(const LogitRow& row, const SampleRequest& request, Visit visit) {
  return row.ids ? visit_candidates<true>(row, request, visit) : visit_candidates<false>(row, request, visit);
}

/// Whether every candidate's score is its logit.
inline bool scores_are_logits(const SampleRequest& request) {
  const bool has_penalty = request.token_counts && request.params->repetition_penalty != 1.0f;
  return !has_penalty && request.params->logit_bias.empty();
}

/// Whether one of kScanBlock logits is above `limit`, in a form that compilers turn into vector instructions.
inline constexpr uint32_t kScanBlock = 32;
inline bool any_above(const float* logits, float limit) {
  int count = 0;
  for (uint32_t i = 0; i < kScanBlock; ++i) count += logits[i] > limit;
  return count > 0;
}

/// The number itself, or the next float below.
inline float float_below(double value) {
  const auto nearest = static_cast<float>(value);
  return static_cast<double>(nearest) <= value ? nearest : std::nextafter(nearest, -HUGE_VALF);
}

/// Whether no candidate's score is above its logit: penalties only lower scores, biases may raise them.
inline bool logits_bound_scores(const SampleRequest& request) {
  return scores_are_logits(request) ||
         (request.params->logit_bias.empty() && request.params->repetition_penalty >= 1.0f);
}

/// visit(score, token_id) for every candidate above limit(), which may rise on the way, and for some that are not; ids
/// ascending. Much faster than for_each_candidate where logits bound scores and few are above the limit.
template <typename Limit, typename Visit>
void for_each_above(const LogitRow& row, const SampleRequest& request, Limit limit, Visit visit) {
  if (!logits_bound_scores(request)) return for_each_candidate(row, request, visit);
  const double penalty = request.params->repetition_penalty;
  const uint32_t* counts = scores_are_logits(request) ? nullptr : request.token_counts;
  uint32_t begin = 0;
  for (uint32_t m = 0; m <= request.num_masked_ids; ++m) {
    const auto masked = m < request.num_masked_ids ? static_cast<uint32_t>(request.masked_ids[m]) : kNoToken;
    const uint32_t end = row.lower_bound(masked);
    for (uint32_t block = begin; block < end; block += kScanBlock) {
      const bool is_whole = end - block >= kScanBlock;
      if (is_whole && !any_above(row.logits + block, float_below(limit()))) continue;
      const uint32_t block_end = is_whole ? block + kScanBlock : end;
      for (uint32_t i = block; i < block_end; ++i) {
        if (!is_finite(row.logits[i])) continue;
        const uint32_t id = row.token_id(i);
        visit(candidate_score(row.logits[i], 0.0, counts && counts[id], penalty), id);
      }
    }
    begin = end + (end < row.size && row.token_id(end) == masked);
  }
}

/// Candidates in the row's scratch.
struct CandidateSet {
  Candidate* first = nullptr;
  Candidate* last = nullptr;
  bool in_id_order = true;

  bool empty() const { return first == last; }
  uint64_t total() const { return total_weight(first, last); }
  void sort_by_id() {
    if (!in_id_order) std::sort(first, last, ByTokenId{});
    in_id_order = true;
  }
};

/// Puts the k best candidates (or all, when there are fewer) into the row's scratch, in no particular order; returns how
/// many. 1 <= k <= row.size.
uint32_t best_candidates(const LogitRow& row, const SampleRequest& request, uint32_t k);

/// Whether top-k leaves some candidates out.
inline bool keeps_top_k(const LogitRow& row, const SamplingParams& params) {
  return params.sample_top_k > 0 && params.sample_top_k < row.size;
}

/// The highest score of a candidate; -HUGE_VAL without any.
double best_score(const LogitRow& row, const SampleRequest& request);

/// Softmax with temperature > 0 of what the request's filters keep, as integers. Empty: no finite logit.
CandidateSet weighed_candidates(const LogitRow& row, const SampleRequest& request);

/// Inverse of the cumulative distribution in the order of token ids. Permutes.
int32_t draw(const CandidateSet& set, uint64_t uniform_bits);

}  // namespace mimo_rt
