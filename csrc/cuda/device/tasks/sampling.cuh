// The first two of the three sampling tasks, both over slices of 2048 tokens of a row: the best
// score of each slice; then, with the best of the row known, the weight of each token. The third is
// draw_tokens.cuh.
//
// Scores are float64 and every operation on them is rounded on its own (sampling/float64.h); what
// follows is integers, whose sums have no order.
#pragma once

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

  __device__ uint32_t token(uint32_t column) const {
    return p.ids ? static_cast<uint32_t>(p.ids[column]) : column;
  }

  /// Whether the token of a column may be drawn, and its score.
  __device__ bool score(uint32_t column, double& score) const {
    const float logit = logits()[column];
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
  /// Over the lanes of a warp.
  __device__ void reduce() {
    const uint32_t lane_idx = threadIdx.x % 32;
#pragma unroll
    for (uint32_t mask = 16; mask != 0; mask /= 2) {
      const uint64_t bits = shuffle_64(__builtin_bit_cast(uint64_t, score), lane_idx ^ mask);
      take(__builtin_bit_cast(double, bits), ptx::shuffle(id, lane_idx ^ mask));
    }
  }
};

struct SliceShared {
  BestToken best[kComputeWarps];
  uint64_t sums[kComputeWarps];
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
__device__ inline BestToken best_of_slices(const SampleParams& p, uint32_t row) {
  const uint32_t num_slices = SliceUnit::num_slices(p);
  BestToken best;
  for (uint32_t slice = threadIdx.x % 32; slice < num_slices; slice += 32)
    best.take(p.scratch.slice_scores[row * num_slices + slice],
              p.scratch.slice_ids[row * num_slices + slice]);
  best.reduce();
  return best;
}

__device__ inline void find_best_scores(SliceShared& shared, const SampleParams& p,
                                        UnitRange range) {
  for (uint32_t u = range.first; u < range.limit(SliceUnit::count(p)); u += range.stride) {
    const SliceUnit unit(p, u);
    const SampleRow row{p, unit.row};
    BestToken best;
    for (uint32_t id = unit.begin + threadIdx.x; id < unit.end; id += kComputeWarps * 32) {
      double score;
      if (row.score(id, score)) best.take(score, id);
    }
    best.reduce();
    if (threadIdx.x % 32 == 0) shared.best[threadIdx.x / 32] = best;
    compute_barrier();
    if (threadIdx.x == 0) {
      for (uint32_t warp = 1; warp < kComputeWarps; ++warp)
        best.take(shared.best[warp].score, shared.best[warp].id);
      p.scratch.slice_scores[u] = best.score;
      p.scratch.slice_ids[u] = best.id;
    }
    compute_barrier();  // before the next unit overwrites
  }
}

__device__ inline void weigh_tokens(SliceShared& shared, const SampleParams& p, UnitRange range) {
  for (uint32_t u = range.first; u < range.limit(SliceUnit::count(p)); u += range.stride) {
    const SliceUnit unit(p, u);
    const SampleRow row{p, unit.row};
    const WeightScale scale(best_of_slices(p, unit.row).score,
                            static_cast<double>(p.rules.temperature), p.vocab_size);
    uint64_t sum = 0;
    for (uint32_t id = unit.begin + threadIdx.x; id < unit.end; id += kComputeWarps * 32) {
      double score;
      const uint64_t weight = row.score(id, score) ? scale.weight(score) : 0;
      row.weights()[id] = weight;
      sum += weight;
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) shared.sums[threadIdx.x / 32] = sum;
    compute_barrier();
    if (threadIdx.x == 0) {
      for (uint32_t warp = 1; warp < kComputeWarps; ++warp) sum += shared.sums[warp];
      p.scratch.slice_sums[u] = sum;
    }
    compute_barrier();  // before the next unit overwrites
  }
}

}  // namespace mimo_rt::cuda
