#include "sampling/candidate_set.h"

#include "sampling/fixed_exp.h"

#include <bit>

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

/// Softmax with temperature, as integers; drops what rounds to zero.
void weigh(CandidateSet& set, double temperature, uint32_t num_logits) {
  const int bits = std::min(53, 63 - static_cast<int>(std::bit_width(num_logits)));
  set.one = std::ldexp(1.0, bits);
  double best = set.first->score;
  for (const Candidate* c = set.first; c != set.last; ++c) best = std::max(best, c->score);
  const double cutoff = -(bits + 1) * 0.6931471805599454;  // below it the weight rounds to 0
  const double inverse_temperature = 1.0 / temperature;
  Candidate* kept = set.first;
  for (const Candidate* c = set.first; c != set.last; ++c) {
    const double exponent = (c->score - best) * inverse_temperature;
    if (exponent < cutoff) continue;
    const auto weight = static_cast<uint64_t>(fixed_exp(exponent) * set.one + 0.5);
    if (weight) *kept++ = {c->score, weight, c->token_id};
  }
  set.last = kept;
}

/// Keeps the smallest set of best candidates whose probability reaches `top_p`.
void filter_top_p(CandidateSet& set, double top_p) {
  const auto total = static_cast<double>(set.total());
  // Candidates below this weight hold less than 1 - top_p together: the kept set is above it. The
  // factor leaves room for the rounding of this line.
  const double floor = (1.0 - top_p) * total / static_cast<double>(set.last - set.first) * 0.999;
  set.last = std::remove_if(set.first, set.last, [floor](const Candidate& c) {
    return static_cast<double>(c.weight) < floor;
  });
  const uint64_t available = set.total();
  const auto wanted = static_cast<uint64_t>(std::ceil(top_p * total));
  const uint64_t target = std::clamp<uint64_t>(wanted, 1, available);
  set.last = select_by_weight(set.first, set.last, target, ByScore{}) + 1;
  set.in_id_order = false;
}

void filter_min_p(CandidateSet& set, double min_p) {
  const double floor = min_p * set.one;
  set.last = std::remove_if(set.first, set.last, [floor](const Candidate& c) {
    return static_cast<double>(c.weight) < floor;
  });
}

}  // namespace

CandidateSet weighed_candidates(const LogitRow& row, const SampleRequest& request) {
  const SamplingParams& params = *request.params;
  CandidateSet set = collect(row, request);
  if (set.empty()) return set;
  weigh(set, params.temperature, row.size);
  if (params.sample_top_p < 1.0f) filter_top_p(set, params.sample_top_p);
  if (params.min_p > 0.0f) filter_min_p(set, params.min_p);
  return set;
}

int32_t draw(const CandidateSet& set, double uniform) {
  const uint64_t total = set.total();
  const auto uniform_bits = static_cast<uint64_t>(uniform * 0x1p53);
  const auto rank = static_cast<uint64_t>(
      (static_cast<unsigned __int128>(uniform_bits) * total) >> 53);  // in [0, total)
  if (!set.in_id_order)
    return static_cast<int32_t>(
        select_by_weight(set.first, set.last, rank + 1, ByTokenId{})->token_id);
  uint64_t left = rank;
  const Candidate* c = set.first;
  for (; left >= c->weight; ++c) left -= c->weight;
  return static_cast<int32_t>(c->token_id);
}

}  // namespace mimo_rt
