#include "sampling/candidate_set.h"

namespace mimo_rt {
namespace {

CandidateSet collect(const LogitRow& row, const SampleRequest& request) {
  auto* first = static_cast<Candidate*>(request.scratch);
  CandidateSet set{first, first};
  const uint32_t k = request.params->sample_top_k;
  if (k > 0 && k < row.size) {
    TopSelector top(first, TopSelector::capacity_for(k, row.size), k);
    for_each_candidate(row, request, [&](double score, uint32_t id) { top.add(score, id); });
    set.last = first + top.finish();
    set.in_id_order = false;
  } else {
    for_each_candidate(row, request,
                       [&](double score, uint32_t id) { *set.last++ = {score, 0, id}; });
  }
  return set;
}

/// Softmax with temperature; drops what rounds to zero.
WeightScale weigh(CandidateSet& set, double temperature, uint32_t num_logits) {
  double best = set.first->score;
  for (const Candidate* c = set.first; c != set.last; ++c) best = std::max(best, c->score);
  const WeightScale scale(best, temperature, num_logits);
  Candidate* kept = set.first;
  for (const Candidate* c = set.first; c != set.last; ++c)
    if (const uint64_t weight = scale.weight(c->score)) *kept++ = {c->score, weight, c->token_id};
  set.last = kept;
  return scale;
}

/// Keeps the smallest set of best candidates whose probability reaches `top_p`.
void filter_top_p(CandidateSet& set, float top_p) {
  const uint64_t total = set.total(), target = top_p_target(top_p, total);
  // Candidates below this weight hold less than 1 - top_p together: the kept set is above it. The
  // factor leaves room for the rounding of this line.
  const double floor =
      (1.0 - double{top_p}) * static_cast<double>(total) / static_cast<double>(set.last - set.first) * 0.999;
  set.last = std::remove_if(set.first, set.last, [floor](const Candidate& c) {
    return static_cast<double>(c.weight) < floor;
  });
  set.last = select_by_weight(set.first, set.last, target, ByScore{}) + 1;
  set.in_id_order = false;
}

void filter_min_p(CandidateSet& set, const WeightScale& scale, float min_p) {
  set.last = std::remove_if(set.first, set.last,
                            [&](const Candidate& c) { return !scale.passes_min_p(c.weight, min_p); });
}

}  // namespace

CandidateSet weighed_candidates(const LogitRow& row, const SampleRequest& request) {
  const SamplingParams& params = *request.params;
  CandidateSet set = collect(row, request);
  if (set.empty()) return set;
  const WeightScale scale = weigh(set, params.temperature, row.size);
  if (params.sample_top_p < 1.0f) filter_top_p(set, params.sample_top_p);
  if (params.min_p > 0.0f) filter_min_p(set, scale, params.min_p);
  return set;
}

int32_t draw(const CandidateSet& set, uint64_t uniform_bits) {
  const uint64_t rank = draw_rank(uniform_bits, set.total());
  if (!set.in_id_order)
    return static_cast<int32_t>(
        select_by_weight(set.first, set.last, rank + 1, ByTokenId{})->token_id);
  uint64_t left = rank;
  const Candidate* c = set.first;
  for (; left >= c->weight; ++c) left -= c->weight;
  return static_cast<int32_t>(c->token_id);
}

}  // namespace mimo_rt
