#include "sampling/weight_blocks.h"

#include <algorithm>
#include <cmath>

namespace mimo_rt {
namespace {

constexpr double kNoCandidate = -HUGE_VAL;  // an exponent

template <typename Entry, typename IdOf>
const Entry* first_from(const Entry* first, const Entry* last, uint32_t token_id, IdOf id_of) {
  return std::lower_bound(first, last, token_id, [&](const Entry& entry, uint32_t id) { return id_of(entry) < id; });
}

}  // namespace

WeightBlocks::WeightBlocks(const LogitRow& row, const SampleRequest& request, const WeightScale& scale)
    : row_(row),
      request_(request),
      scale_(scale),
      counts_(request.params->repetition_penalty == 1.0f ? nullptr : request.token_counts) {}

double WeightBlocks::bias_of(uint32_t token_id) const {
  const auto& biases = request_.params->logit_bias;
  const auto id_of = [](const TokenBias& bias) { return static_cast<uint32_t>(bias.token_id); };
  const TokenBias* end = biases.data() + biases.size();
  const TokenBias* found = first_from(biases.data(), end, token_id, id_of);
  return found != end && id_of(*found) == token_id ? found->bias : 0.0;
}

/// Penalties, biases and masks of logits [begin, end).
void WeightBlocks::correct_exponents(uint32_t begin, uint32_t end, double* exponents) const {
  const bool has_biases = !request_.params->logit_bias.empty();
  for (uint32_t i = begin; (counts_ || has_biases) && i < end; ++i) {
    const uint32_t id = row_.token_id(i);
    const bool has_occurred = counts_ && counts_[id];
    if ((!has_occurred && !has_biases) || !is_finite(row_.logits[i])) continue;
    const double score = candidate_score(row_.logits[i], has_biases ? bias_of(id) : 0.0, has_occurred,
                                         double{request_.params->repetition_penalty});
    exponents[i - begin] = scale_.exponent(score);
  }
  const int32_t* masked_end = request_.masked_ids + request_.num_masked_ids;
  const auto id_of = [](int32_t id) { return static_cast<uint32_t>(id); };
  const uint32_t last_id = row_.token_id(end - 1);
  for (const int32_t* id = first_from(request_.masked_ids, masked_end, row_.token_id(begin), id_of);
       id != masked_end && id_of(*id) <= last_id; ++id) {
    const uint32_t i = row_.lower_bound(id_of(*id));
    if (row_.token_id(i) == id_of(*id)) exponents[i - begin] = kNoCandidate;
  }
}

uint64_t WeightBlocks::weigh(uint32_t block, uint64_t (&weights)[kExpBlock]) const {
  const uint32_t begin = block * kExpBlock, end = std::min(begin + kExpBlock, row_.size);
  double exponents[kExpBlock], exps[kExpBlock];
  std::fill(exponents, exponents + kExpBlock, kNoCandidate);
  for (uint32_t i = begin; i < end; ++i) exponents[i - begin] = scale_.exponent(row_.logits[i]);
  correct_exponents(begin, end, exponents);
  // No candidate is above the best: an infinite logit is none.
  for (double& x : exponents) x = x > 0.0 ? kNoCandidate : x;
  fixed_exp_block(exponents, exps);
  uint64_t sum = 0;
  for (uint32_t i = 0; i < kExpBlock; ++i) sum += weights[i] = scale_.weight(exponents[i], exps[i]);
  return sum;
}

uint64_t WeightBlocks::total() const {
  uint64_t weights[kExpBlock], sum = 0;
  for (uint32_t block = 0; block < num_blocks(); ++block) sum += weigh(block, weights);
  return sum;
}

int32_t draw_unfiltered(const LogitRow& row, const SampleRequest& request, const WeightScale& scale,
                        uint64_t uniform_bits) {
  const WeightBlocks blocks(row, request, scale);
  uint64_t weights[kExpBlock], total = 0;
  auto* sums = static_cast<uint64_t*>(request.scratch);
  for (uint32_t block = 0; block < blocks.num_blocks(); ++block) total += sums[block] = blocks.weigh(block, weights);
  uint64_t left = draw_rank(uniform_bits, total);
  uint32_t block = 0, i = 0;
  for (; left >= sums[block]; ++block) left -= sums[block];
  blocks.weigh(block, weights);
  for (; left >= weights[i]; ++i) left -= weights[i];
  return static_cast<int32_t>(row.token_id(block * kExpBlock + i));
}

}  // namespace mimo_rt
