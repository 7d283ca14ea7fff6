#include "sampling/candidate_set.h"

#include "sampling/exp_block.h"
#include "sampling/weight_blocks.h"

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

/// Scores up to here have weight 0 or one below `least_weight`; so have a few above.
double dropped_score(const WeightScale& scale, double least_weight) {
  double exponent = scale.cutoff;
  // Weights are rounded; -1, the difference and the factor leave room for that and for the logarithm.
  if (least_weight > 2.0) exponent = std::max(exponent, std::log((least_weight - 1.0) / scale.one) - 1e-6);
  return std::nextafter(scale.best + 1.0001 * exponent / scale.inverse_temperature, -HUGE_VAL);
}

/// Candidates below this weight hold less than 1 - top_p together: what top-p keeps is above it. The factor leaves room
/// for the rounding of this line.
double top_p_floor(float top_p, uint64_t total, uint64_t num_candidates) {
  return (1.0 - double{top_p}) * static_cast<double>(total) / static_cast<double>(num_candidates) * 0.999;
}

/// Keeps the smallest set of best candidates whose probability reaches `top_p`. The set holds all of them, `total` is
/// the weight of all candidates that there are, `num_candidates` at least their number.
void filter_top_p(CandidateSet& set, float top_p, uint64_t total, uint64_t num_candidates) {
  const uint64_t target = top_p_target(top_p, total);
  const double floor = top_p_floor(top_p, total, num_candidates);
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

double best_score(const LogitRow& row, const SampleRequest& request) {
  double best = -HUGE_VAL;
  for_each_above(row, request, [&] { return best; }, [&](double score, uint32_t) { best = std::max(best, score); });
  return best;
}

CandidateSet weighed_candidates(const LogitRow& row, const SampleRequest& request) {
  const SamplingParams& params = *request.params;
  auto* first = static_cast<Candidate*>(request.scratch);
  CandidateSet set{first, first};
  const bool has_top_k = keeps_top_k(row, params), has_top_p = params.sample_top_p < 1.0f;
  if (has_top_k) set.last = first + best_candidates(row, request, params.sample_top_k);
  double best = -HUGE_VAL;
  for (const Candidate* c = first; c != set.last; ++c) best = std::max(best, c->score);
  if (!has_top_k) best = best_score(row, request);
  if (best == -HUGE_VAL) return set;

  const WeightScale scale(best, params.temperature, row.size + row.num_left_out);
  Weigher weigher(scale, first);  // drops what rounds to zero
  uint64_t total = 0;             // before top-p
  if (has_top_k) {
    for (const Candidate* c = first; c != set.last; ++c) weigher.add(c->score, c->token_id);
  } else {
    if (has_top_p) total = WeightBlocks(row, request, scale).total();
    const double least_weight = has_top_p ? top_p_floor(params.sample_top_p, total, row.size)
                                          : double{params.min_p} * scale.one;
    const double limit = dropped_score(scale, least_weight);
    for_each_above(row, request, [limit] { return limit; }, [&](double score, uint32_t id) {
      if (score > limit) weigher.add(score, id);
    });
  }
  set.last = weigher.finish();
  set.in_id_order = !has_top_k;
  if (has_top_p) filter_top_p(set, params.sample_top_p, has_top_k ? set.total() : total, row.size);
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
