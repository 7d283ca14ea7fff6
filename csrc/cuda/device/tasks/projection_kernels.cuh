// The projection task and its helpers as kernels of their own: one loader warp, eight compute warps
// per block.
#pragma once

#include "cuda/device/tasks/projection.cuh"

namespace mimo_rt::cuda {

__global__ void __launch_bounds__(kBlockThreads, 1)
    projection_fp8_kernel(const __grid_constant__ ProjectionParams params) {
  run_roles<ProjectionShared>(params, load_projection<Fp8Tiles>,
                              compute_projection<Fp8Tiles, false>);
}

__global__ void __launch_bounds__(kBlockThreads, 1)
    projection_fp8_normed_kernel(const __grid_constant__ ProjectionParams params) {
  run_roles<ProjectionShared>(params, load_projection<Fp8Tiles>,
                              compute_projection<Fp8Tiles, true>);
}

__global__ void __launch_bounds__(kBlockThreads, 1)
    projection_bf16_kernel(const __grid_constant__ ProjectionParams params) {
  run_roles<ProjectionShared>(params, load_projection<Bf16Tiles>,
                              compute_projection<Bf16Tiles, false>);
}

__global__ void __launch_bounds__(kBlockThreads, 1)
    projection_bf16_normed_kernel(const __grid_constant__ ProjectionParams params) {
  run_roles<ProjectionShared>(params, load_projection<Bf16Tiles>,
                              compute_projection<Bf16Tiles, true>);
}

__global__ void __launch_bounds__(kComputeWarps * 32, 1)
    rms_norm_kernel(const __grid_constant__ RmsNormParams params) {
  compute_rms_norm(*reinterpret_cast<NormShared*>(ptx::dynamic_shared_memory()), params, {blockIdx.x, gridDim.x});
}

using ProjectionKernel = void (*)(ProjectionParams);

inline ProjectionKernel projection_kernel(const ProjectionParams& params) {
  const bool is_fp8 = params.format == ProjectionFormat::fp8_e4m3;
  if (params.norm_weight)
    return is_fp8 ? projection_fp8_normed_kernel : projection_bf16_normed_kernel;
  return is_fp8 ? projection_fp8_kernel : projection_bf16_kernel;
}

}  // namespace mimo_rt::cuda
