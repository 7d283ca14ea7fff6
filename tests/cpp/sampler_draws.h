// Draws of the sampler under test, and the same draws by full sorts and one candidate after the other.
#pragma once

#include "sampler_reference.h"
#include "sampling/arithmetic.h"
#include "sampling/candidates.h"
#include "sampling/philox.h"
#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace sampler_reference {

using namespace mimo_rt;

/// A setting whose tokens the sampler under test draws.
struct Draws : Setting {
  Draws(std::vector<float> logits_, SamplingParams params_, std::vector<uint32_t> counts_ = {},
        std::vector<int32_t> masked_ = {}, uint64_t sequence_id_ = 0)
      : Setting{std::move(logits_), std::move(params_), std::move(counts_), std::move(masked_)},
        sequence_id(sequence_id_) {}
  uint64_t sequence_id;

  SampleResult at(uint32_t position) const {
    const auto vocab = static_cast<uint32_t>(logits.size());
    static std::vector<uint64_t> scratch;  // left dirty on purpose: no draw may depend on it
    scratch.resize(std::max<size_t>(scratch.size(), sampler_scratch_bytes(vocab) / 8));
    SampleRequest request{.params = &params, .sequence_id = sequence_id, .position = position};
    request.token_counts = counts.empty() ? nullptr : counts.data();
    request.masked_ids = masked.data();
    request.num_masked_ids = static_cast<uint32_t>(masked.size());
    request.scratch = scratch.data();
    SampleResult result;
    sample_token({logits.data(), vocab}, request, result);
    return result;
  }
};

/// The score of a finite logit.
inline double plain_score(const Draws& draws, uint32_t id) {
  const bool has_occurred = !draws.counts.empty() && draws.counts[id];
  double bias = 0.0;
  for (const TokenBias& entry : draws.params.logit_bias)
    if (uint32_t(entry.token_id) == id) bias = entry.bias;
  return candidate_score(draws.logits[id], bias, has_occurred, double{draws.params.repetition_penalty});
}

/// The token of a draw, by full sorts and one candidate after the other.
inline int32_t plain_draw(const Draws& draws, uint32_t position) {
  const SamplingParams& params = draws.params;
  std::vector<Candidate> kept;
  for (uint32_t i = 0; i < draws.logits.size(); ++i)
    if (std::isfinite(draws.logits[i]) && !std::count(draws.masked.begin(), draws.masked.end(), int32_t(i)))
      kept.push_back({plain_score(draws, i), 0, i});
  if (kept.empty()) return -1;
  std::sort(kept.begin(), kept.end(), ByScore{});
  if (params.sample_top_k && params.sample_top_k < kept.size()) kept.resize(params.sample_top_k);
  const WeightScale scale(kept[0].score, params.temperature, uint32_t(draws.logits.size()));
  uint64_t total = 0, sum = 0;
  for (Candidate& c : kept) total += c.weight = scale.weight(c.score);
  if (params.sample_top_p < 1) {
    size_t size = 0;
    while (sum < top_p_target(params.sample_top_p, total)) sum += kept[size++].weight;
    kept.resize(size);
  }
  std::erase_if(kept, [&](const Candidate& c) { return !c.weight || !scale.passes_min_p(c.weight, params.min_p); });
  std::sort(kept.begin(), kept.end(), ByTokenId{});
  total = total_weight(kept.data(), kept.data() + kept.size());
  uint64_t rank = draw_rank(uniform_bits_at(params.seed, draws.sequence_id, position, 0), total);
  size_t at = 0;
  for (; rank >= kept[at].weight; ++at) rank -= kept[at].weight;
  return int32_t(kept[at].token_id);
}

/// p-value of the draws at positions 0..num_draws-1 under `expected`.
inline double p_value(const Draws& draws, const std::vector<long double>& expected, uint32_t num_draws) {
  std::vector<double> seen(expected.size());
  for (uint32_t i = 0; i < num_draws; ++i) seen[static_cast<size_t>(draws.at(i).token_id)] += 1;
  return p_value(seen, expected);
}

}  // namespace sampler_reference
