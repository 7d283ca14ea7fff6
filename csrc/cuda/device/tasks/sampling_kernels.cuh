// The sampling tasks as kernels of their own: eight compute warps per block.
#pragma once

#include "cuda/device/tasks/sample_rows.cuh"

namespace mimo_rt::cuda {

__global__ void __launch_bounds__(kComputeWarps * 32, 1)
    sample_best_kernel(const __grid_constant__ SampleParams params) {
  find_best_scores(params, {blockIdx.x, gridDim.x});
}

__global__ void __launch_bounds__(kComputeWarps * 32, 1)
    sample_weigh_kernel(const __grid_constant__ SampleParams params) {
  weigh_tokens(params, {blockIdx.x, gridDim.x});
}

__global__ void __launch_bounds__(kComputeWarps * 32, 1)
    sample_draw_kernel(const __grid_constant__ SampleParams params) {
  draw_tokens(*reinterpret_cast<DrawShared*>(ptx::dynamic_shared_memory()), params,
              {blockIdx.x, gridDim.x});
}

/// Of rows whose best scores are known: the task `sample`, a share per block.
__global__ void __launch_bounds__(kComputeWarps * 32, 1)
    sample_rows_kernel(const __grid_constant__ SampleRowsParams params) {
  sample_rows(*reinterpret_cast<DrawShared*>(ptx::dynamic_shared_memory()), *params.rows, params.num_rows,
              blockIdx.x, gridDim.x);
}

__global__ void __launch_bounds__(32, 1)
    accept_kernel(const __grid_constant__ AcceptParams params) {
  if (threadIdx.x == 0) accept_drafts(params);
}

}  // namespace mimo_rt::cuda
