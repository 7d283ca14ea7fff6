// The router tasks as kernels of their own.
#pragma once

#include "cuda/device/tasks/router.cuh"
#include "cuda/device/tasks/select_experts.cuh"

namespace mimo_rt::cuda {

__global__ void __launch_bounds__(kBlockThreads, 1)
    router_logits_f32_kernel(const __grid_constant__ RouterLogitsParams params) {
  run_roles<RouterShared>(params, load_router_logits<F32Rows>, compute_router_logits<F32Rows>);
}

__global__ void __launch_bounds__(kBlockThreads, 1)
    router_logits_bf16_kernel(const __grid_constant__ RouterLogitsParams params) {
  run_roles<RouterShared>(params, load_router_logits<Bf16Rows>, compute_router_logits<Bf16Rows>);
}

__global__ void __launch_bounds__(kComputeWarps * 32, 1)
    select_experts_kernel(const __grid_constant__ SelectExpertsParams params) {
  select_experts(*reinterpret_cast<SelectShared*>(ptx::dynamic_shared_memory()), params);
}

using RouterLogitsKernel = void (*)(RouterLogitsParams);

inline RouterLogitsKernel router_logits_kernel(const RouterLogitsParams& params) {
  return params.format == RouterFormat::f32 ? router_logits_f32_kernel : router_logits_bf16_kernel;
}

}  // namespace mimo_rt::cuda
