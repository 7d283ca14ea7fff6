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
  uint32_t near_places[kMaxSlices];
  uint32_t counts[kComputeWarps];
  uint64_t rest;
  uint32_t found;
  uint32_t is_last;
};

/// What all compute threads have together, and those up to this one.
struct BlockSum {
  uint64_t total, up_to;

  __device__ BlockSum(DrawShared& shared, uint64_t value) : total(0), up_to(sum_up_to(value)) {
    const uint32_t warp_idx = threadIdx.x / 32;
    compute_barrier();  // what an earlier call left in `shared` has been read
    if (threadIdx.x % 32 == 31) shared.warp_sums[warp_idx] = up_to;
    compute_barrier();
    for (uint32_t warp = 0; warp < kComputeWarps; ++warp) {
      if (warp < warp_idx) up_to += shared.warp_sums[warp];
      total += shared.warp_sums[warp];
    }
  }
};

/// Sum over all compute threads, in all of them.
__device__ inline uint64_t block_sum(DrawShared& shared, uint64_t value) {
  return BlockSum(shared, value).total;
}

/// The first of `size` things at which the running sum of their weights passes `rank`, which becomes what is left of it
/// there. There is one.
template <typename WeightAt>
__device__ uint32_t place_of_rank(DrawShared& shared, uint64_t& rank, uint32_t size, const WeightAt& weight_at) {
  const uint32_t per_thread = (size + kComputeWarps * 32 - 1) / (kComputeWarps * 32);
  uint32_t i = threadIdx.x * per_thread;
  const uint32_t end = i + per_thread < size ? i + per_thread : size;
  uint64_t own = 0;
  for (uint32_t j = i; j < end; ++j) own += weight_at(j);
  const uint64_t up_to = BlockSum(shared, own).up_to;
  if (rank < up_to && rank >= up_to - own) {  // one thread
    for (rank -= up_to - own; rank >= weight_at(i); ++i) rank -= weight_at(i);
    shared.found = i;
    shared.rest = rank;
  }
  compute_barrier();
  rank = shared.rest;
  return shared.found;
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

/// Some tokens of a row, or all. None of the others has a weight, whatever its place in memory says.
struct TokenList {
  const uint32_t* ids;  ///< nullptr: all; else ascending, but for the lists of a search
  uint32_t size;

  __device__ uint32_t operator[](uint32_t i) const { return ids ? ids[i] : i; }
  /// Of a list with ascending ids.
  __device__ bool contains(uint32_t id) const {
    const uint32_t place = ids ? lower_bound(size, id, [&](uint32_t i) { return ids[i]; }) : id;
    return place < size && (*this)[place] == id;
  }
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

  /// The token of the list at which the running sum of the measure reaches `target`, 1 .. its sum.
  template <typename Measure>
  __device__ uint32_t find(TokenList list, uint64_t target, const Measure& measure) const {
    for (uint32_t i = 0; i < kNumDigits && list.size > 1; ++i) {
      add_up(list, i, measure);
      uint32_t value = 0;
      for (; value + 1 < kDigitValues && shared.value_sums[value] < target; ++value)
        target -= shared.value_sums[value];
      uint32_t* out = row.list(i % 2 * 2);
      list = {out, gather(list, i, value, out)};
    }
    return list[0];
  }

  /// Takes the weight of all tokens of the list after `last`.
  __device__ void drop_after(const TokenList& list, uint32_t last) const {
    double score = 0.0;
    (void)row.score(last, score);
    const TokenOrder end(scale, score, last);
    for_each(list, [&](const TokenOrder& order, uint64_t) {
      if (order.is_after(end)) row.weights()[order.id] = 0;
    });
    compute_barrier();
  }
};

}  // namespace mimo_rt::cuda
