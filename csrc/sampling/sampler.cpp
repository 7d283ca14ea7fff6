#include "sampling/sampler.h"

#include "sampling/candidate_set.h"

#include <limits>

namespace mimo_rt {
namespace {

int32_t draw_token(const LogitRow& row, const SampleRequest& request) {
  const CandidateSet set = weighed_candidates(row, request);
  if (set.empty()) return -1;
  return draw(set, uniform_bits_at(request.params->seed, request.sequence_id, request.position,
                                   draw_stream(0, DrawUse::sample)));
}

constexpr uint32_t kBlock = 32;

/// In a form that compilers turn into vector instructions.
bool any_above(const float* logits, float limit) {
  int count = 0;
  for (uint32_t i = 0; i < kBlock; ++i) count += logits[i] > limit;
  return count > 0;
}

/// best_token where scores are logits. Fast, because all workers wait for it in a round.
int32_t best_logit(const LogitRow& row, const SampleRequest& request) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  int32_t best_id = -1;
  float best = -kInfinity;
  uint32_t begin = 0;
  for (uint32_t m = 0; m <= request.num_masked_ids; ++m) {
    const uint32_t masked = m < request.num_masked_ids ? static_cast<uint32_t>(request.masked_ids[m]) : kNoToken;
    const uint32_t end = row.lower_bound(masked);
    for (uint32_t i = begin; i < end; ++i) {
      while (end - i > kBlock && !any_above(row.logits + i, best)) i += kBlock;
      if (!(row.logits[i] > best) || row.logits[i] == kInfinity) continue;  // NaN compares false
      best = row.logits[i];
      best_id = static_cast<int32_t>(row.token_id(i));
    }
    begin = end + (end < row.size && row.token_id(end) == masked);
  }
  return best_id;
}

}  // namespace

uint64_t sampler_scratch_bytes(uint32_t vocab_size) {
  return uint64_t{vocab_size} * sizeof(Candidate);
}

int32_t best_token(const LogitRow& row, const SampleRequest& request) {
  const bool has_penalty = request.token_counts && request.params->repetition_penalty != 1.0f;
  if (!has_penalty && request.params->logit_bias.empty()) return best_logit(row, request);
  int32_t best = -1;
  double best_score = 0.0;
  for_each_candidate(row, request, [&](double score, uint32_t id) {
    if (best >= 0 && score <= best_score) return;
    best = static_cast<int32_t>(id);
    best_score = score;
  });
  return best;
}

void sample_token(const float* logits, uint32_t vocab_size, const SampleRequest& request, SampleResult& result) {
  result.logprob = 0.0f;
  result.num_alternatives = 0;
  result.token_id = request.params->temperature == 0.0f ? best_token({logits, vocab_size}, request)
                                                        : draw_token({logits, vocab_size}, request);
  fill_logprobs(logits, vocab_size, request, result);
}

void fill_logprobs(const float* logits, uint32_t vocab_size, const SampleRequest& request, SampleResult& result) {
  if (result.token_id < 0 || (!request.params->want_logprob && request.params->num_logprobs == 0)) return;
  static const SamplingParams kRaw;
  const LogitRow row{logits, vocab_size};
  const SampleRequest raw{.params = &kRaw};
  double best = -HUGE_VAL;
  for_each_candidate(row, raw, [&](double score, uint32_t) { best = std::max(best, score); });
  double sum = 0.0;
  for_each_candidate(row, raw, [&](double score, uint32_t) { sum += fixed_exp(score - best); });
  const double log_normaliser = best + std::log(sum);
  result.logprob = static_cast<float>(row.logits[result.token_id] - log_normaliser);

  const uint32_t k = std::min({request.params->num_logprobs, kMaxLogprobs, row.size});
  if (k == 0) return;
  auto* first = static_cast<Candidate*>(request.scratch);
  TopSelector top(first, TopSelector::capacity_for(k, row.size), k);
  for_each_candidate(row, raw, [&](double score, uint32_t id) { top.add(score, id); });
  result.num_alternatives = top.finish();
  std::sort(first, first + result.num_alternatives, ByScore{});
  for (uint32_t i = 0; i < result.num_alternatives; ++i)
    result.alternatives[i] = {static_cast<int32_t>(first[i].token_id),
                              static_cast<float>(first[i].score - log_normaliser)};
}

double uniform_at(uint64_t seed, uint64_t sequence_id, uint32_t position, uint32_t stream) {
  return static_cast<double>(uniform_bits_at(seed, sequence_id, position, stream)) * 0x1p-53;
}

}  // namespace mimo_rt
