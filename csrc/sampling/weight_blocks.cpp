#include "sampling/weight_blocks.h"

#include <algorithm>
#include <cmath>

namespace mimo_rt {
namespace {

constexpr double kNoCandidate = -HUGE_VAL;  // an exponent

}  // namespace

WeightBlocks::WeightBlocks(const LogitRow& row, const SampleRequest& request, const WeightScale& scale)
    : row_(row),
      request_(request),
      scale_(scale),
      counts_(request.params->repetition_penalty == 1.0f ? nullptr : request.token_counts) {}

/// visit(i, entry) for the entries, ascending, whose tokens have logits i of [begin, end).
template <typename Entry, typename IdOf, typename Visit>
void WeightBlocks::for_each_listed(const Entry* entry, const Entry* last, uint32_t begin, uint32_t end, IdOf id_of,
                                   Visit visit) const {
  const uint32_t last_id = row_.token_id(end - 1);
  entry = std::lower_bound(entry, last, row_.token_id(begin),
                           [&](const Entry& listed, uint32_t id) { return id_of(listed) < id; });
  for (; entry != last && id_of(*entry) <= last_id; ++entry) {
    const uint32_t i = row_.lower_bound(id_of(*entry));
    if (row_.token_id(i) == id_of(*entry)) visit(i, *entry);
  }
}

/// Penalties, biases and masks of logits [begin, end).
void WeightBlocks::correct_exponents(uint32_t begin, uint32_t end, double* exponents) const {
  const auto set_score = [&](uint32_t i, double bias) {
    const bool has_occurred = counts_ && counts_[row_.token_id(i)];
    exponents[i - begin] = scale_.exponent(candidate_score(row_.logits[i], bias, has_occurred,
                                                           double{request_.params->repetition_penalty}));
  };
  for (uint32_t i = begin; counts_ && i < end; ++i)
    if (counts_[row_.token_id(i)]) set_score(i, 0.0);
  const auto& biases = request_.params->logit_bias;
  for_each_listed(biases.data(), biases.data() + biases.size(), begin, end,
                  [](const TokenBias& bias) { return static_cast<uint32_t>(bias.token_id); },
                  [&](uint32_t i, const TokenBias& bias) { set_score(i, bias.bias); });
  for_each_listed(request_.masked_ids, request_.masked_ids + request_.num_masked_ids, begin, end,
                  [](int32_t id) { return static_cast<uint32_t>(id); },
                  [&](uint32_t i, int32_t) { exponents[i - begin] = kNoCandidate; });
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
