// The sample task: the three sampling tasks for one row after the other, all by one block. Likewise
// the rows of a round (accept_round.cuh).
#pragma once

#include "cuda/device/tasks/draw_tokens.cuh"
#include "cuda/step_params.h"

namespace mimo_rt::cuda {

/// The token of one row, and all threads may read it.
__device__ inline void sample_row(DrawShared& shared, const SampleParams& p, uint32_t row) {
  const uint32_t num_slices = SliceUnit::num_slices(p);
  const UnitRange slices{row * num_slices, 1, (row + 1) * num_slices};
  find_best_scores(p, slices);
  compute_barrier();  // the slices of this row, before all threads read them
  if (p.rules.temperature != 0.0f) {
    weigh_tokens(p, slices);
    compute_barrier();
  }
  draw_tokens(shared, p, {row, 1, row + 1});
}

__device__ inline void sample_rows(DrawShared& shared, const SampleRowsParams& p) {
  for (uint32_t r = 0; r < p.num_rows; ++r) sample_row(shared, p.rows[r], 0);
}

}  // namespace mimo_rt::cuda
