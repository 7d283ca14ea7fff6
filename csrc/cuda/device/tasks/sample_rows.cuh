// The sample task: the three sampling tasks for one row after the other, all by one block.
#pragma once

#include "cuda/device/tasks/draw_tokens.cuh"
#include "cuda/step_params.h"

namespace mimo_rt::cuda {

union SampleRowsShared {
  SliceShared slice;
  DrawShared draw;
};

__device__ inline void sample_rows(SampleRowsShared& shared, const SampleRowsParams& p) {
  constexpr UnitRange kAll{0, 1};
  for (uint32_t r = 0; r < p.num_rows; ++r) {
    const SampleParams& row = p.rows[r];
    find_best_scores(shared.slice, row, kAll);
    if (row.rules.temperature != 0.0f) weigh_tokens(shared.slice, row, kAll);
    compute_barrier();  // the slices of this row, before all threads read them
    draw_tokens(shared.draw, row, kAll);
  }
}

}  // namespace mimo_rt::cuda
