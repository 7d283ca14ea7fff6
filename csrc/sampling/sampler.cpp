#include "sampling/sampler.h"

#include "sampling/candidate_set.h"
#include "sampling/exp_block.h"
#include "sampling/weight_blocks.h"

namespace mimo_rt {
namespace {

const SamplingParams kRaw;  // here: a static of a function takes a lock

int32_t draw_token(const LogitRow& row, const SampleRequest& request) {
  const SamplingParams& params = *request.params;
  const uint64_t bits =
      uniform_bits_at(params.seed, request.sequence_id, request.position, draw_stream(0, DrawUse::sample));
  if (!keeps_top_k(row, params) && params.sample_top_p >= 1.0f && params.min_p == 0.0f) {
    const double best = best_score(row, request);
    if (best == -HUGE_VAL) return -1;
    return draw_unfiltered(row, request, WeightScale(best, params.temperature, row.size + row.num_left_out), bits);
  }
  const CandidateSet set = weighed_candidates(row, request);
  return set.empty() ? -1 : draw(set, bits);
}

/// The logarithm of the sum of e^logit, added in the order of token ids.
double log_sum_exp(const LogitRow& row, const SampleRequest& raw) {
  double best = -HUGE_VAL, sum = 0.0;
  for_each_candidate(row, raw, [&](double score, uint32_t) { best = std::max(best, score); });
  double x[kExpBlock], e[kExpBlock];
  uint32_t size = 0;
  const auto add_block = [&] {
    fixed_exp_block(x, e);
    for (uint32_t i = 0; i < size; ++i) sum += e[i];
    size = 0;
  };
  std::fill(x, x + kExpBlock, 0.0);
  for_each_candidate(row, raw, [&](double score, uint32_t) {
    x[size] = score - best;
    if (++size == kExpBlock) add_block();
  });
  add_block();
  return best + std::log(sum);
}

}  // namespace

uint64_t sampler_scratch_bytes(uint32_t vocab_size) {
  return uint64_t{vocab_size} * sizeof(Candidate);
}

int32_t best_token(const LogitRow& row, const SampleRequest& request) {
  int32_t best = -1;
  double best_score = -HUGE_VAL;
  for_each_above(row, request, [&] { return best_score; }, [&](double score, uint32_t id) {
    if (score <= best_score) return;
    best = static_cast<int32_t>(id);
    best_score = score;
  });
  return best;
}

float logit_lead(const LogitRow& row, int32_t token_id) {
  const auto token = static_cast<uint32_t>(token_id);
  const uint32_t i = row.lower_bound(token);
  if (i == row.size || row.token_id(i) != token) return 0.0f;
  double second = -HUGE_VAL;
  for_each_above(row, {.params = &kRaw}, [&] { return second; }, [&](double score, uint32_t id) {
    if (id != token) second = std::max(second, score);
  });
  return static_cast<float>(row.logits[i] - second);
}

uint32_t num_best_logits(const SampleRequest& request) {
  const SamplingParams& params = *request.params;
  if (!scores_are_logits(request) || request.num_masked_ids || params.want_logprob || params.num_logprobs) return 0;
  if (params.temperature == 0.0f) return 1;
  return params.sample_top_k <= kMaxBestLogits ? params.sample_top_k : 0;
}

void sample_token(const LogitRow& row, const SampleRequest& request, SampleResult& result) {
  set_token(request.params->temperature == 0.0f ? best_token(row, request) : draw_token(row, request), result);
  fill_logprobs(row, request, result);
}

void fill_logprobs(const LogitRow& row, const SampleRequest& request, SampleResult& result) {
  if (result.token_id < 0 || (!request.params->want_logprob && request.params->num_logprobs == 0)) return;
  const SampleRequest raw{.params = &kRaw, .scratch = request.scratch};
  const double log_normaliser = log_sum_exp(row, raw);
  result.logprob = static_cast<float>(row.logits[result.token_id] - log_normaliser);

  const uint32_t k = std::min({request.params->num_logprobs, kMaxLogprobs, row.size});
  if (k == 0) return;
  auto* first = static_cast<Candidate*>(request.scratch);
  result.num_alternatives = best_candidates(row, raw, k);
  std::sort(first, first + result.num_alternatives, ByScore{});
  for (uint32_t i = 0; i < result.num_alternatives; ++i)
    result.alternatives[i] = {static_cast<int32_t>(first[i].token_id),
                              static_cast<float>(first[i].score - log_normaliser)};
}

}  // namespace mimo_rt
