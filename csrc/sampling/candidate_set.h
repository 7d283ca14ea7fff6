// The candidates of one row of logits: what may be drawn, with which weight. Every way of choosing a token goes through
// here, so that all agree on masks, biases, penalties and filters.
#pragma once

#include "sampling/candidates.h"
#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>

namespace mimo_rt {

struct LogitRow {
  const float* logits;
  uint32_t vocab_size;
};

/// visit(score, token_id) for every candidate, ids ascending; a score is the logit with bias and penalty. Leaves out
/// what is masked or not finite.
template <typename Visit>
void for_each_candidate(const LogitRow& row, const SampleRequest& request, Visit visit) {
  const double penalty = request.params->repetition_penalty;
  const uint32_t* counts = penalty == 1.0 ? nullptr : request.token_counts;
  const auto& biases = request.params->logit_bias;
  auto next_bias = biases.begin();
  const auto visit_one = [&](uint32_t id, double bias) {
    double score = row.logits[id];
    if (!std::isfinite(score)) return;
    score += bias;
    if (counts && counts[id]) score = score > 0.0 ? score / penalty : score * penalty;
    visit(score, id);
  };
  uint32_t num_masked = 0;
  for (uint32_t begin = 0; begin < row.vocab_size;) {
    const auto masked =
        num_masked < request.num_masked_ids ? static_cast<uint32_t>(request.masked_ids[num_masked]) : row.vocab_size;
    const auto biased = next_bias != biases.end() ? static_cast<uint32_t>(next_bias->token_id) : row.vocab_size;
    if (begin < std::min(masked, biased)) {
      for (const uint32_t end = std::min(masked, biased); begin < end; ++begin) visit_one(begin, 0.0);
      continue;
    }
    if (begin != masked) visit_one(begin, next_bias->bias);
    num_masked += begin == masked;
    next_bias += begin == biased;
    ++begin;
  }
}

/// Candidates in the row's scratch.
struct CandidateSet {
  Candidate* first = nullptr;
  Candidate* last = nullptr;
  bool in_id_order = true;
  double one = 0.0;  ///< weight of the best candidate; the sum over a vocabulary stays below 2^63

  bool empty() const { return first == last; }
  uint64_t total() const { return total_weight(first, last); }
  void sort_by_id() {
    if (!in_id_order) std::sort(first, last, ByTokenId{});
    in_id_order = true;
  }
};

/// Softmax with temperature > 0 of what the request's filters keep, as integers. Empty: no finite logit.
CandidateSet weighed_candidates(const LogitRow& row, const SampleRequest& request);

/// Inverse of the cumulative distribution in the order of token ids; `uniform` in [0, 1). Permutes.
int32_t draw(const CandidateSet& set, double uniform);

}  // namespace mimo_rt
