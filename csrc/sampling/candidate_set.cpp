#include "sampling/candidate_set.h"

#include "sampling/exp_block.h"

namespace mimo_rt {
namespace {

/// Weighs candidates in blocks and stores those whose weight is not 0. `out` may be where the candidates come from.
class Weigher {
 public:
  Weigher(const WeightScale& scale, Candidate* out) : scale_(scale), last_(out) {
    std::fill(exponents_, exponents_ + kExpBlock, 0.0);
  }

  void add(double score, uint32_t token_id) {
    scores_[size_] = score;
    exponents_[size_] = scale_.exponent(score);
    token_ids_[size_] = token_id;
    if (++size_ == kExpBlock) store_block();
  }

  Candidate* finish() {
    store_block();
    return last_;
  }

 private:
  void store_block() {
    double exps[kExpBlock];
    fixed_exp_block(exponents_, exps);
    for (uint32_t i = 0; i < size_; ++i) {
      const uint64_t weight = scale_.weight(exponents_[i], exps[i]);
      *last_ = {scores_[i], weight, token_ids_[i]};  // never beyond the candidate that it comes from
      last_ += weight != 0;
    }
    size_ = 0;
  }

  const WeightScale scale_;
  Candidate* last_;
  uint32_t size_ = 0;
  double scores_[kExpBlock], exponents_[kExpBlock];
  uint32_t token_ids_[kExpBlock];
};

/// Scores up to here have weight 0, or less weight than min-p asks for where nothing else looks at the weights; so have
/// a few above.
double dropped_score(const WeightScale& scale, const SamplingParams& params) {
  double exponent = scale.cutoff;
  // Weights are rounded; -1 and the factor below leave room for that and for the logarithm.
  const double least_weight = double{params.min_p} * scale.one - 1.0;
  if (params.sample_top_p >= 1.0f && least_weight > 1.0)
    exponent = std::max(exponent, std::log(least_weight / scale.one) - 1e-6);
  return std::nextafter(scale.best + 1.0001 * exponent / scale.inverse_temperature, -HUGE_VAL);
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

uint32_t best_candidates(const LogitRow& row, const SampleRequest& request, uint32_t k) {
  TopSelector top(static_cast<Candidate*>(request.scratch), TopSelector::capacity_for(k, row.size), k);
  for_each_above(row, request, [&] { return top.limit(); },
                 [&](double score, uint32_t id) { top.add(score, id); });
  return top.finish();
}

CandidateSet weighed_candidates(const LogitRow& row, const SampleRequest& request) {
  const SamplingParams& params = *request.params;
  auto* first = static_cast<Candidate*>(request.scratch);
  CandidateSet set{first, first};
  const uint32_t k = params.sample_top_k;
  const bool has_top_k = k > 0 && k < row.size;
  double best = -HUGE_VAL;
  if (has_top_k) {
    set.last = first + best_candidates(row, request, k);
    for (const Candidate* c = first; c != set.last; ++c) best = std::max(best, c->score);
  } else {
    for_each_above(row, request, [&] { return best; },
                   [&](double score, uint32_t) { best = std::max(best, score); });
  }
  if (best == -HUGE_VAL) return set;

  const WeightScale scale(best, params.temperature, row.size);
  Weigher weigher(scale, first);  // drops what rounds to zero
  if (has_top_k) {
    for (const Candidate* c = first; c != set.last; ++c) weigher.add(c->score, c->token_id);
  } else {
    for_each_above(row, request, [limit = dropped_score(scale, params)] { return limit; },
                   [&](double score, uint32_t id) { weigher.add(score, id); });
  }
  set.last = weigher.finish();
  set.in_id_order = !has_top_k;
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
