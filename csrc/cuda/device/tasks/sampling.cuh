// The first two of the three steps of sampling, both over slices of a row, a slice at a warp: the best score of each
// slice (in the persistent kernel lm_head finds the best, see projection_store.cuh); then, with the best of the row known,
// the weight of each token, and a list of those near the best. The third is draw_tokens.cuh.
//
// Scores are float64 and every operation on them is rounded on its own (sampling/float64.h); what
// follows is integers, whose sums have no order.
#pragma once

#include "cuda/device/math/best.cuh"
#include "cuda/device/math/block_sums.cuh"
#include "cuda/sampling_params.h"
#include "sampling/arithmetic.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kNoToken = 0xffffffffu;

/// Where an ascending list holds the first element that is not below `id`.
template <typename IdAt>
__device__ uint32_t lower_bound(uint32_t size, uint32_t id, const IdAt& id_at) {
  uint32_t begin = 0;
  while (begin < size) {
    const uint32_t middle = (begin + size) / 2;
    if (id_at(middle) < id)
      begin = middle + 1;
    else
      size = middle;
  }
  return begin;
}

/// The candidates of one row. An id is a column of the logits, but for p.ids the same as a token's.
struct SampleRow {
  const SampleParams& p;
  uint32_t row;

  __device__ const float* logits() const { return p.logits.row(row); }
  __device__ uint64_t* weights() const { return p.scratch.weights + uint64_t{row} * p.vocab_size; }
  __device__ uint32_t* list(uint32_t i) const { return p.scratch.lists + (uint64_t{row} * 3 + i) * p.vocab_size; }

  __device__ uint32_t token(uint32_t column) const {
    return p.ids ? static_cast<uint32_t>(p.ids[column]) : column;
  }

  /// No token differs from its logit, and all may be drawn.
  __device__ bool is_plain() const {
    return (row >= p.num_masked_rows || p.num_masked_ids == 0) && p.rules.num_biases == 0 &&
           p.rules.repetition_penalty == 1.0f;
  }
  /// Whether the token of a column may be drawn, and its score.
  __device__ bool score(uint32_t column, double& score) const {
    return score_of(logits()[column], column, score);
  }
  /// The same of a column whose logit is known.
  __device__ bool score_of(float logit, uint32_t column, double& score) const {
    if (!is_finite(logit)) return false;
    const uint32_t id = token(column);
    if (row < p.num_masked_rows && p.num_masked_ids != 0) {
      const uint32_t place = lower_bound(p.num_masked_ids, id, [&](uint32_t i) {
        return static_cast<uint32_t>(p.masked_ids[i]);
      });
      if (place < p.num_masked_ids && static_cast<uint32_t>(p.masked_ids[place]) == id)
        return false;
    }
    double bias = 0.0;
    if (p.rules.num_biases != 0) {
      const uint32_t place = lower_bound(p.rules.num_biases, id, [&](uint32_t i) {
        return static_cast<uint32_t>(p.rules.biases[i].token_id);
      });
      if (place < p.rules.num_biases &&
          static_cast<uint32_t>(p.rules.biases[place].token_id) == id)
        bias = static_cast<double>(p.rules.biases[place].bias);
    }
    const auto penalty = static_cast<double>(p.rules.repetition_penalty);
    score = candidate_score(logit, bias, penalty != 1.0 && has_occurred(id), penalty);
    return true;
  }
  /// In the text before the block, or as a draft that this row follows.
  __device__ bool has_occurred(uint32_t id) const {
    if (p.rules.token_counts[id] != 0) return true;
    for (uint32_t i = 1; p.block && i <= row; ++i)
      if (static_cast<uint32_t>(p.block[i]) == id) return true;
    return false;
  }
};

/// The higher score, the lower id among equals.
struct BestToken {
  double score = 0.0;
  uint32_t id = kNoToken;  ///< none yet

  __device__ void take(double other, uint32_t other_id) {
    if (other_id == kNoToken) return;
    if (id != kNoToken && (other < score || (other == score && other_id > id))) return;
    score = other;
    id = other_id;
  }
  /// Over lanes whose indices differ in bits below `width`. All lanes of the warp take part.
  __device__ void reduce(uint32_t width) {
    const uint32_t lane_idx = threadIdx.x % 32;
    for (uint32_t mask = width / 2; mask != 0; mask /= 2) {
      const uint64_t bits = shuffle_64(__builtin_bit_cast(uint64_t, score), lane_idx ^ mask);
      take(__builtin_bit_cast(double, bits), ptx::shuffle(id, lane_idx ^ mask));
    }
  }
};

/// A unit is one slice of one row.
struct SliceUnit {
  uint32_t row, slice, begin, end;

  __device__ static uint32_t num_slices(const SampleParams& p) {
    return (p.vocab_size + kSliceTokens - 1) / kSliceTokens;
  }
  __device__ static uint32_t count(const SampleParams& p) { return p.num_rows * num_slices(p); }
  __device__ SliceUnit(const SampleParams& p, uint32_t unit)
      : row(unit / num_slices(p)), slice(unit % num_slices(p)), begin(slice * kSliceTokens) {
    end = begin + kSliceTokens < p.vocab_size ? begin + kSliceTokens : p.vocab_size;
  }
};

/// The best token of a row, in all lanes of the warp; id kNoToken: there is none.
__device__ inline BestToken best_of_row(const SampleParams& p, uint32_t row) {
  const uint32_t num_parts = p.scratch.num_parts;
  BestToken best;
#pragma unroll 4
  for (uint32_t part = threadIdx.x % 32; part < num_parts; part += 32)
    best.take(p.scratch.best_scores[row * num_parts + part], p.scratch.best_ids[row * num_parts + part]);
  best.reduce(32);
  return best;
}

/// The logits of a slice, kBatch at a time of each lane of a warp: one trip to memory for all of them.
/// visit(column, logit), ascending.
template <uint32_t kBatch, typename Visit>
__device__ __forceinline__ void for_each_logit(const SampleRow& row, const SliceUnit& unit, const Visit& visit) {
  const float* logits = row.logits();
#pragma unroll 1
  for (uint32_t begin = unit.begin + threadIdx.x % 32; begin < unit.end; begin += kBatch * 32) {
    float batch[kBatch];
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i)
      if (begin + 32 * i < unit.end) batch[i] = logits[begin + 32 * i];
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i)
      if (begin + 32 * i < unit.end) visit(begin + 32 * i, batch[i]);
  }
}

// What a warp does of a unit. Called, not inlined: the persistent kernel has two places for it, and no registers
// beside its products.

/// The best token of the slice.
__device__ __attribute__((noinline)) inline void find_best_score(const SampleParams& p, uint32_t u) {
  const SliceUnit unit(p, u);
  const SampleRow row{p, unit.row};
  BestToken best;
  if (row.is_plain()) {  // a fifth of the instructions
    Best plain;
    for_each_logit<12>(row, unit, [&](uint32_t column, float logit) {
      if (is_finite(logit)) plain.take(logit, column);
    });
    best = {static_cast<double>(plain.value), plain.column};
  } else {
    for_each_logit<1>(row, unit, [&](uint32_t column, float logit) {
      double score;
      if (row.score_of(logit, column, score)) best.take(score, column);
    });
  }
  best.reduce(32);
  if (threadIdx.x % 32 != 0) return;
  p.scratch.best_scores[u] = best.score;
  p.scratch.best_ids[u] = best.id;
}

/// Whether a token is near the best: the first ones in the order of TokenOrder, whose first key this is. Of the others
/// none has 2^-15 of the best token's weight.
inline constexpr float kNearExponent = -11.0f, kNearWeight = 0x1p-15f;

/// The weights of the slice, their sum, and its tokens near the best, ids ascending.
__device__ __attribute__((noinline)) inline void weigh_slice(const SampleParams& p, uint32_t u) {
  const SliceUnit unit(p, u);
  const SampleRow row{p, unit.row};
  const WeightScale scale(best_of_row(p, unit.row).score, static_cast<double>(p.rules.temperature), p.vocab_size);
  const float* logits = row.logits();
  uint32_t* near = row.list(0) + unit.begin;
  const uint32_t lane_idx = threadIdx.x % 32;
  constexpr uint32_t kBatch = 4;
  uint64_t sum = 0;
  uint32_t num_near = 0;
#pragma unroll 1
  for (uint32_t begin = unit.begin; begin < unit.end; begin += 32 * kBatch) {
    float batch[kBatch];  // one trip to memory
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) {
      const uint32_t column = begin + 32 * i + lane_idx;
      batch[i] = column < unit.end ? logits[column] : ptx::as_float(0xff800000u);
    }
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) {
      const uint32_t column = begin + 32 * i + lane_idx;
      uint64_t weight = 0;
      bool is_near = false;
      double score;
      if (row.score_of(batch[i], column, score)) {
        const double x = scale.exponent(score);
        weight = scale.weight(x, fixed_exp(x));
        is_near = weight != 0 && x > static_cast<double>(kNearExponent);
      }
      if (column < unit.end) row.weights()[column] = weight;
      sum += weight;
      const uint32_t below = sum_below(is_near ? 1 : 0);
      if (is_near) near[num_near + below] = column;
      num_near += ptx::shuffle(below + (is_near ? 1 : 0), 31);
    }
  }
  sum = warp_sum(sum);
  if (lane_idx != 0) return;
  p.scratch.slice_sums[u] = sum;
  p.scratch.near_counts[u] = num_near;
}

/// run(p, unit) for those of the range that are this warp's.
template <typename Run>
__device__ __forceinline__ void for_each_unit_of_warp(const SampleParams& p, UnitRange range, const Run& run) {
  for (uint32_t u = range.first + threadIdx.x / 32 * range.stride; u < range.limit(SliceUnit::count(p));
       u += kComputeWarps * range.stride)
    run(p, u);
}

__device__ inline void find_best_scores(const SampleParams& p, UnitRange range) {
  for_each_unit_of_warp(p, range, find_best_score);
}

__device__ inline void weigh_tokens(const SampleParams& p, UnitRange range) {
  for_each_unit_of_warp(p, range, weigh_slice);
}

}  // namespace mimo_rt::cuda
