// The tokens of a step's rows, or of a round's: all blocks weigh them together, a share of the slices of all rows each.
// Every share of a row counts itself in, and the one that comes last draws the row's token; so no block waits for another,
// and rows are drawn beside each other. Nothing depends on who is last: weights are integers. At temperature 0 there is
// nothing to weigh: whoever has the first slice of a row takes the best token that lm_head has found.
//
// The rows of a round are drawn whether the drafts before them are confirmed or not. Row r takes the drafts up to its own
// for text (SampleRow::has_occurred), so a token that counts is the same as if it had waited to hear of them.
#pragma once

#include "cuda/device/tasks/draw_tokens.cuh"
#include "cuda/device/tasks/last_share.cuh"
#include "plan/task.h"

namespace mimo_rt::cuda {

/// The token of one row, by one block, when the best of its parts are known.
__device__ inline void sample_row(DrawShared& shared, const SampleParams& p, uint32_t row) {
  const uint32_t num_slices = SliceUnit::num_slices(p);
  if (p.rules.temperature != 0.0f) {
    weigh_tokens(p, {row * num_slices, 1, (row + 1) * num_slices});
    compute_barrier();  // the slices of this row, before all threads read them
  }
  draw_tokens(shared, p, {row, 1, row + 1});
}

/// What a share has of the slices of all rows.
struct SampleShare {
  uint32_t num_slices, num_units;  ///< of a row, of all rows
  uint32_t num_shares;             ///< that have anything to do
  uint32_t begin, end;

  __device__ SampleShare(uint32_t slices, uint32_t num_rows, uint32_t share, uint32_t all_shares)
      : num_slices(slices), num_units(num_rows * slices),
        num_shares(all_shares < num_units ? all_shares : num_units), begin(0), end(0) {
    if (share >= num_shares) return;
    begin = share_begin(share, num_shares, num_units);
    end = share_begin(share + 1, num_shares, num_units);
  }
  /// The share that has a unit.
  __device__ uint32_t share_of(uint32_t unit) const {
    return static_cast<uint32_t>((uint64_t{unit + 1} * num_shares - 1) / num_units);
  }
  /// Shares that have slices of the row, but one.
  __device__ uint32_t num_others(uint32_t row) const {
    return share_of((row + 1) * num_slices - 1) - share_of(row * num_slices);
  }
};

/// A share of all rows, and the draw of those that it is the last for. Ends with a barrier.
__device__ inline void sample_rows(DrawShared& shared, const SampledRows& rows, uint32_t num_rows, uint32_t share_idx,
                                   uint32_t num_shares) {
  const SampleShare share(SliceUnit::num_slices(rows.calls[0]), num_rows, share_idx, num_shares);
  for (uint32_t row = share.begin / share.num_slices; row * share.num_slices < share.end; ++row) {
    const SampleParams& p = rows.call(row);
    const uint32_t row_of_call = rows.row_of_call(row), row_begin = row * share.num_slices;
    const uint32_t first = share.begin > row_begin ? share.begin - row_begin : 0;  // of the row's slices
    if (p.rules.temperature == 0.0f) {
      if (share.begin <= row_begin) draw_tokens(shared, p, {row_of_call, 1, row_of_call + 1});
      continue;
    }
    const uint32_t rest = share.end - row_begin, end = rest < share.num_slices ? rest : share.num_slices;
    const uint32_t call_begin = row_of_call * share.num_slices;
    weigh_tokens(p, {call_begin + first, 1, call_begin + end});
    compute_barrier();
    if (comes_last(shared.is_last, &rows.arrived[row], share.num_others(row)))
      draw_tokens(shared, p, {row_of_call, 1, row_of_call + 1});
  }
  compute_barrier();
}

}  // namespace mimo_rt::cuda
