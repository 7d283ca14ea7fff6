// What the sampling kernels are given, and their constants. For g++ and nvcc.
//
// A row of logits becomes a token exactly as csrc/sampling does it on the CPU: same filters, same
// uniform numbers, same integers (sampling/arithmetic.h is shared), so equal logits give equal
// tokens. With a draft the target's rows confirm or replace what was drafted:
//
//   drafts are best tokens    the row's token is drawn as ever; equal to the draft: confirmed
//   drafts were drawn from q  kept with probability min(1, p / q), else drawn from max(p - q, 0)
//
// Both are exact: the tokens have the target's distribution; q is 0 for tokens that the draft does not
// know. Not covered: logprobs.
#pragma once

#include <mimo_rt/sampling.h>

#include <cstdint>

#include "cuda/kernel_params.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kMaxVocabSize = 1u << 19;
inline constexpr uint32_t kSliceTokens = 512;  ///< of a row, weighed by one warp
inline constexpr uint32_t kMaxSlices = kMaxVocabSize / kSliceTokens;

inline uint32_t num_slices_of(uint32_t vocab_size) {
  return (vocab_size + kSliceTokens - 1) / kSliceTokens;
}

/// Working memory of a call. After a draft's call it holds the distributions of its tokens.
struct SampleScratch {
  uint64_t* weights = nullptr;   ///< [num_rows, vocab_size] what may be drawn; 0: may not
  uint64_t* totals = nullptr;    ///< [num_rows] sums of them
  uint64_t* slice_sums = nullptr;  ///< [num_rows, num_slices]
  double* best_scores = nullptr;   ///< [num_rows, num_parts] the best of each part of the row
  uint32_t* best_ids = nullptr;    ///< [num_rows, num_parts] its lowest id; ~0: no candidate
  uint32_t* near_counts = nullptr;  ///< [num_rows, num_slices] tokens near the best (sampling.cuh)
  /// [num_rows, 3, vocab_size] those of each slice from its first token on, then what filters look at.
  uint32_t* lists = nullptr;
  uint32_t num_parts = 0;  ///< slices, or what else has found their best

  static uint64_t bytes(uint32_t num_rows, uint32_t vocab_size, uint32_t num_parts) {
    const uint64_t row_bytes = 20 * uint64_t{vocab_size} + 12 * uint64_t{num_slices_of(vocab_size)} +
                               12 * uint64_t{num_parts} + 8;
    return num_rows * ((row_bytes + 7) / 8 * 8);
  }
  static uint64_t bytes(uint32_t num_rows, uint32_t vocab_size) {
    return bytes(num_rows, vocab_size, num_slices_of(vocab_size));
  }
  /// `memory`: `bytes` of them, 8-byte aligned.
  static SampleScratch view(uint8_t* memory, uint32_t num_rows, uint32_t vocab_size, uint32_t num_parts) {
    const uint64_t num_weights = uint64_t{num_rows} * vocab_size;
    const uint64_t num_slices = uint64_t{num_rows} * num_slices_of(vocab_size);
    SampleScratch scratch;
    scratch.weights = reinterpret_cast<uint64_t*>(memory);
    scratch.totals = scratch.weights + num_weights;
    scratch.slice_sums = scratch.totals + num_rows;
    scratch.best_scores = reinterpret_cast<double*>(scratch.slice_sums + num_slices);
    scratch.best_ids = reinterpret_cast<uint32_t*>(scratch.best_scores + uint64_t{num_rows} * num_parts);
    scratch.near_counts = scratch.best_ids + uint64_t{num_rows} * num_parts;
    scratch.lists = scratch.near_counts + num_slices;
    scratch.num_parts = num_parts;
    return scratch;
  }
  static SampleScratch view(uint8_t* memory, uint32_t num_rows, uint32_t vocab_size) {
    return view(memory, num_rows, vocab_size, num_slices_of(vocab_size));
  }
};

/// SamplingParams without what only the host can hold.
struct SamplingRules {
  float temperature = 1.0f;  ///< 0: the best token
  uint32_t top_k = 0;        ///< 0: off
  float top_p = 1.0f, min_p = 0.0f, repetition_penalty = 1.0f;
  uint64_t seed = 0, sequence_id = 0;
  const uint32_t* token_counts = nullptr;  ///< [vocab_size]; used when the penalty is not 1
  const TokenBias* biases = nullptr;       ///< [num_biases] ids ascending and unique
  uint32_t num_biases = 0;
};

/// Drafts that are best tokens: temperature 0 in the draft's call.
enum class SampleRole : uint8_t { target, draft };

struct SampleParams {
  RowsView<const float> logits;  ///< [num_rows, vocab_size]
  SamplingRules rules;
  SampleRole role = SampleRole::target;
  const int32_t* ids = nullptr;        ///< [vocab_size] token of each column, ascending; nullptr: the same
  const uint32_t* position = nullptr;  ///< [1] of the token that row 0 draws; row r: + r
  /// Target: [num_rows] the anchor and the drafts, row r + 1 proposed for the token of row r; they
  /// count as occurred in the rows that follow them. nullptr: one row, or rows of no draft.
  const int32_t* block = nullptr;
  /// Target, temperature > 0: weights and totals of the draft's call, whose row r belongs to block
  /// row r + 1. Without: the drafts are best tokens.
  SampleScratch proposals;
  const int32_t* proposal_ids = nullptr;  ///< of the draft's call, when that has ids: [num_proposal_ids]
  uint32_t num_proposal_ids = 0;
  const int32_t* masked_ids = nullptr;  ///< [num_masked_ids] ascending, unique: not drawn …
  uint32_t num_masked_ids = 0;
  uint32_t num_masked_rows = 0;         ///< … in rows [0, this)
  SampleScratch scratch;
  /// [num_rows]; without a finite logit -1, and 0 for a draft. Row r is meant only if rows before
  /// it have confirmed their drafts.
  int32_t* tokens = nullptr;
  uint32_t num_rows = 0;    ///< 1 .. kMaxTokens
  uint32_t vocab_size = 0;  ///< 1 .. kMaxVocabSize
};

/// The rows of a step whose tokens are drawn, by all blocks together. In device memory.
struct SampledRows {
  const SampleParams* calls = nullptr;  ///< one, or [*num_rows] of a row each
  const uint32_t* num_rows = nullptr;   ///< [1]
  /// [rows] shares that have weighed their part of the row; of a draft's rows nullptr. Between steps 0.
  uint32_t* arrived = nullptr;
  bool has_call_per_row = false;

#if defined(__CUDACC__)
  __device__
#endif
      const SampleParams&
      call(uint32_t row) const {
    return calls[has_call_per_row ? row : 0];
  }
#if defined(__CUDACC__)
  __device__
#endif
      uint32_t
      row_of_call(uint32_t row) const {
    return has_call_per_row ? 0 : row;
  }
};

/// A tile, or a block of the kernel, is a share of the tokens of all rows.
struct SampleRowsParams {
  const SampledRows* rows = nullptr;
  uint32_t num_rows = 0;  ///< 1 .. kMaxTokens
};

/// How many drafts of a block the target's rows have confirmed, and the token after them.
struct AcceptParams {
  const int32_t* tokens = nullptr;  ///< [num_rows] of launch_sample
  const int32_t* block = nullptr;   ///< [num_rows]
  uint32_t* num_accepted = nullptr; ///< [1] 0 .. num_rows - 1
  int32_t* next_token = nullptr;    ///< [1] tokens[*num_accepted]
  uint32_t num_rows = 0;            ///< 1 .. kMaxTokens
};

}  // namespace mimo_rt::cuda
