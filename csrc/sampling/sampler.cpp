// The sampler. Every pass over a row goes through `for_each_candidate`, which applies the mask and
// the repetition penalty and leaves out what is not finite.
#include "sampling/sampler.h"

#include "sampling/candidates.h"
#include "sampling/fixed_exp.h"
#include "sampling/philox.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace mimo_rt {
namespace {

constexpr uint32_t kDrawStream = 0;

struct Row {
  const float* logits;
  uint32_t vocab_size;
};

/// visit(score, token_id) for every candidate, ids ascending.
template <typename Visit>
void for_each_candidate(const Row& row, const SampleRequest& request, Visit visit) {
  const double penalty = request.params->repetition_penalty;
  const uint32_t* counts = penalty == 1.0 ? nullptr : request.token_counts;
  uint32_t begin = 0;
  for (uint32_t i = 0; i <= request.num_masked_ids; ++i) {
    const uint32_t end = i < request.num_masked_ids
                             ? static_cast<uint32_t>(request.masked_ids[i])
                             : row.vocab_size;
    for (uint32_t id = begin; id < end; ++id) {
      double score = row.logits[id];
      if (!std::isfinite(score)) continue;
      if (counts && counts[id]) score = score > 0.0 ? score / penalty : score * penalty;
      visit(score, id);
    }
    begin = end + 1;
  }
}

/// The candidates of one row while filters narrow them down, in the row's scratch.
struct CandidateSet {
  Candidate* first;
  Candidate* last;
  bool in_id_order = true;
  double one = 0.0;  ///< weight of the best candidate; the sum over a vocabulary stays below 2^63
};

CandidateSet collect(const Row& row, const SampleRequest& request) {
  auto* first = static_cast<Candidate*>(request.scratch);
  CandidateSet set{first, first};
  const uint32_t k = request.params->sample_top_k;
  if (k > 0 && k < row.vocab_size) {
    TopSelector top(first, TopSelector::capacity_for(k, row.vocab_size), k);
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
void weigh(CandidateSet& set, double temperature, uint32_t vocab_size) {
  const int bits = std::min(53, 63 - static_cast<int>(std::bit_width(vocab_size)));
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
  const auto total = static_cast<double>(total_weight(set.first, set.last));
  // Candidates below this weight hold less than 1 - top_p together: the kept set is above it. The
  // factor leaves room for the rounding of this line.
  const double floor = (1.0 - top_p) * total / static_cast<double>(set.last - set.first) * 0.999;
  set.last = std::remove_if(set.first, set.last, [floor](const Candidate& c) {
    return static_cast<double>(c.weight) < floor;
  });
  const uint64_t available = total_weight(set.first, set.last);
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

/// Inverse of the cumulative distribution in the order of token ids.
int32_t draw(const CandidateSet& set, double uniform) {
  const uint64_t total = total_weight(set.first, set.last);
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

int32_t draw_token(const Row& row, const SampleRequest& request) {
  const SamplingParams& params = *request.params;
  CandidateSet set = collect(row, request);
  if (set.first == set.last) return -1;
  weigh(set, params.temperature, row.vocab_size);
  if (params.sample_top_p < 1.0f) filter_top_p(set, params.sample_top_p);
  if (params.min_p > 0.0f) filter_min_p(set, params.min_p);
  return draw(set, uniform_at(params.seed, request.sequence_id, request.position, kDrawStream));
}

void fill_logprobs(const Row& row, const SampleRequest& request, SampleResult& result) {
  static constexpr SamplingParams kRaw;
  const SampleRequest raw{.params = &kRaw};
  double best = -HUGE_VAL;
  for_each_candidate(row, raw, [&](double score, uint32_t) { best = std::max(best, score); });
  double sum = 0.0;
  for_each_candidate(row, raw, [&](double score, uint32_t) { sum += fixed_exp(score - best); });
  const double log_normaliser = best + std::log(sum);
  result.logprob = static_cast<float>(row.logits[result.token_id] - log_normaliser);

  const uint32_t k = std::min({request.params->num_logprobs, kMaxLogprobs, row.vocab_size});
  if (k == 0) return;
  auto* first = static_cast<Candidate*>(request.scratch);
  TopSelector top(first, TopSelector::capacity_for(k, row.vocab_size), k);
  for_each_candidate(row, raw, [&](double score, uint32_t id) { top.add(score, id); });
  result.num_alternatives = top.finish();
  std::sort(first, first + result.num_alternatives, ByScore{});
  for (uint32_t i = 0; i < result.num_alternatives; ++i)
    result.alternatives[i] = {static_cast<int32_t>(first[i].token_id),
                              static_cast<float>(first[i].score - log_normaliser)};
}

}  // namespace

uint64_t sampler_scratch_bytes(uint32_t vocab_size) {
  return uint64_t{vocab_size} * sizeof(Candidate);
}

int32_t best_token(const float* logits, uint32_t vocab_size, const SampleRequest& request) {
  int32_t best = -1;
  double best_score = 0.0;
  for_each_candidate({logits, vocab_size}, request, [&](double score, uint32_t id) {
    if (best >= 0 && score <= best_score) return;
    best = static_cast<int32_t>(id);
    best_score = score;
  });
  return best;
}

void sample_token(const float* logits, uint32_t vocab_size, const SampleRequest& request,
                  SampleResult& result) {
  const Row row{logits, vocab_size};
  const SamplingParams& params = *request.params;
  result.logprob = 0.0f;
  result.num_alternatives = 0;
  result.token_id = params.temperature == 0.0f ? best_token(logits, vocab_size, request)
                                               : draw_token(row, request);
  if (result.token_id < 0) return;
  if (params.want_logprob || params.num_logprobs > 0) fill_logprobs(row, request, result);
}

double uniform_at(uint64_t seed, uint64_t sequence_id, uint32_t position, uint32_t stream) {
  const PhiloxCounter words = philox4x32_10(
      {static_cast<uint32_t>(sequence_id), static_cast<uint32_t>(sequence_id >> 32), position,
       stream},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t bits = uint64_t{words[0] >> 5} << 26 | words[1] >> 6;
  return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace mimo_rt
