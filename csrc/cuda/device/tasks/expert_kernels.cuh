// The expert tasks as kernels of their own: one loader warp, eight compute warps per block.
#pragma once

#include "cuda/device/tasks/expert_mlp.cuh"

namespace mimo_rt::cuda {

__global__ void __launch_bounds__(kBlockThreads, 1)
    expert_gate_up_kernel(const __grid_constant__ ExpertGateUpParams params) {
  run_roles<ExpertShared>(params, load_expert_gate_up, compute_expert_gate_up<>);
}

__global__ void __launch_bounds__(kBlockThreads, 1)
    expert_down_kernel(const __grid_constant__ ExpertDownParams params) {
  run_roles<ExpertShared>(params, load_expert_down, compute_expert_down<>);
}

}  // namespace mimo_rt::cuda
