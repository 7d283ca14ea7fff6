// The attention tasks as kernels of their own: one loader warp, eight compute warps per block; and
// eight warps that combine.
#pragma once

#include "cuda/device/tasks/attention_combine.cuh"

namespace mimo_rt::cuda {

__global__ void __launch_bounds__(kBlockThreads, 1)
    attention_kernel(const __grid_constant__ AttentionParams params) {
  run_roles<AttentionShared>(params, load_attention, compute_attention<kGroupRows / 16>);
}

__global__ void __launch_bounds__(kComputeWarps * 32, 1)
    attention_combine_kernel(const __grid_constant__ AttentionParams params) {
  combine_attention(params, {blockIdx.x, gridDim.x});
}

}  // namespace mimo_rt::cuda
