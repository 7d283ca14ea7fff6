// Which tokens of a row top-k and top-p keep: one block, a radix search.
//
// Candidates are ordered by score, the lower id first among equals: a total order, so the kept set
// is unique. Its end is where the running sum of a measure (1 or the weight) reaches a target. The
// order is written as a number of 32 digits of 4 bits: the distance to the best as a fixed-point
// exponent, then the bits of the score, then the id. Digit after digit the block adds up the
// measure per value, picks the value where the target falls and goes on with the tokens that have
// it. Two or three digits leave a few tokens in a hundred; only equal scores need all 32.
#pragma once

#include "cuda/device/tasks/sampling.cuh"

namespace mimo_rt::cuda {

inline constexpr uint32_t kDigitBits = 4, kDigitValues = 1 << kDigitBits, kNumDigits = 32;

struct DrawShared {
  uint64_t columns[kDigitValues][kComputeWarps * 32];  ///< measure per value and thread
  uint64_t value_sums[kDigitValues];
  uint64_t warp_sums[kComputeWarps];
  uint64_t slice_sums[kMaxSlices];
  uint32_t counts[kComputeWarps];
  uint32_t found;
};

/// Sum over all compute threads, in all of them.
__device__ inline uint64_t block_sum(DrawShared& shared, uint64_t value) {
  value = warp_sum(value);
  compute_barrier();  // the sums of an earlier call have been read
  if (threadIdx.x % 32 == 0) shared.warp_sums[threadIdx.x / 32] = value;
  compute_barrier();
  uint64_t sum = 0;
  for (uint32_t warp = 0; warp < kComputeWarps; ++warp) sum += shared.warp_sums[warp];
  return sum;
}

/// A token's place in the order: the lower, the better.
struct TokenOrder {
  uint32_t distance;
  uint64_t score;
  uint32_t id;

  __device__ TokenOrder(const WeightScale& scale, double token_score, uint32_t token_id)
      : id(token_id) {
    // Weights below 2^-54 of the best are 0, so exponents end before -64.
    distance = static_cast<uint32_t>(-scale.exponent(token_score) * 0x1p+26);
    const auto bits = __builtin_bit_cast(uint64_t, token_score + 0.0);  // -0 is 0
    score = bits >> 63 ? bits : ~bits & ~(uint64_t{1} << 63);
  }
  __device__ uint32_t digit(uint32_t i) const {
    if (i < 8) return distance >> (28 - 4 * i) & 15;
    if (i < 24) return static_cast<uint32_t>(score >> (60 - 4 * (i - 8))) & 15;
    return id >> (28 - 4 * (i - 24)) & 15;
  }
  __device__ bool is_after(const TokenOrder& other) const {
    if (distance != other.distance) return distance > other.distance;
    return score != other.score ? score > other.score : id > other.id;
  }
};

/// The tokens that a search still looks at: all of the row, then shrinking lists.
struct TokenList {
  const uint32_t* ids;  ///< nullptr: all
  uint32_t size;

  __device__ uint32_t operator[](uint32_t i) const { return ids ? ids[i] : i; }
};

struct TokenSearch {
  DrawShared& shared;
  const SampleRow& row;
  const WeightScale& scale;

  /// visit(order, weight) for this thread's tokens with weight, in the same order each time.
  template <typename Visit>
  __device__ void for_each(const TokenList& list, const Visit& visit) const {
    for (uint32_t i = threadIdx.x; i < list.size; i += kComputeWarps * 32) {
      const uint64_t weight = row.weights()[list[i]];
      if (weight == 0) continue;
      double score = 0.0;
      (void)row.score(list[i], score);
      visit(TokenOrder(scale, score, list[i]), weight);
    }
  }

  /// Sums of the measure for each value of digit `i`, in all threads' reach.
  template <typename Measure>
  __device__ void add_up(const TokenList& list, uint32_t i, const Measure& measure) const {
    for (uint32_t value = 0; value < kDigitValues; ++value) shared.columns[value][threadIdx.x] = 0;
    for_each(list, [&](const TokenOrder& order, uint64_t weight) {
      shared.columns[order.digit(i)][threadIdx.x] += measure(weight);
    });
    compute_barrier();
    const uint32_t lane_idx = threadIdx.x % 32;
    for (uint32_t value = threadIdx.x / 32; value < kDigitValues; value += kComputeWarps) {
      uint64_t sum = 0;
      for (uint32_t part = 0; part < kComputeWarps; ++part)
        sum += shared.columns[value][part * 32 + lane_idx];
      sum = warp_sum(sum);
      if (lane_idx == 0) shared.value_sums[value] = sum;
    }
    compute_barrier();
  }

  /// Writes the tokens whose digit `i` is `value` to `out`. @return how many
  __device__ uint32_t gather(const TokenList& list, uint32_t i, uint32_t value,
                             uint32_t* out) const {
    const uint32_t warp_idx = threadIdx.x / 32;
    uint32_t count = 0;
    for_each(list, [&](const TokenOrder& order, uint64_t) { count += order.digit(i) == value; });
    const uint32_t below = sum_below(count);
    if (threadIdx.x % 32 == 31) shared.counts[warp_idx] = below + count;
    compute_barrier();
    uint32_t place = below, total = 0;
    for (uint32_t warp = 0; warp < kComputeWarps; ++warp) {
      if (warp < warp_idx) place += shared.counts[warp];
      total += shared.counts[warp];
    }
    for_each(list, [&](const TokenOrder& order, uint64_t) {
      if (order.digit(i) == value) out[place++] = order.id;
    });
    compute_barrier();
    return total;
  }

  /// The token at which the running sum of the measure reaches `target`, 1 .. its sum.
  template <typename Measure>
  __device__ uint32_t find(uint64_t target, const Measure& measure) const {
    const SampleParams& p = row.p;
    uint32_t* lists = p.scratch.lists + uint64_t{row.row} * 2 * p.vocab_size;
    TokenList list{nullptr, p.vocab_size};
    for (uint32_t i = 0; i < kNumDigits && list.size > 1; ++i) {
      add_up(list, i, measure);
      uint32_t value = 0;
      for (; value + 1 < kDigitValues && shared.value_sums[value] < target; ++value)
        target -= shared.value_sums[value];
      uint32_t* out = lists + i % 2 * p.vocab_size;
      list = {out, gather(list, i, value, out)};
    }
    return list[0];
  }

  /// Takes the weight of all tokens after `last`.
  __device__ void drop_after(uint32_t last) const {
    double score = 0.0;
    (void)row.score(last, score);
    const TokenOrder end(scale, score, last);
    for_each({nullptr, row.p.vocab_size}, [&](const TokenOrder& order, uint64_t) {
      if (order.is_after(end)) row.weights()[order.id] = 0;
    });
    compute_barrier();
  }
};

}  // namespace mimo_rt::cuda
