// The expert tasks as kernels of their own: one loader warp, eight compute warps per block.
#pragma once

#include "cuda/device/tasks/expert_mlp.cuh"

namespace mimo_rt::cuda {

/// Sets up the ring, then runs one role per warp.
template <typename Params, typename Load, typename Compute>
__device__ __forceinline__ void run_expert_roles(const Params& params, Load load, Compute compute) {
  auto& shared = *reinterpret_cast<ExpertShared*>(ptx::dynamic_shared_memory());
  if (threadIdx.x == 0) shared.ring.init();
  ptx::named_barrier_sync(0, kExpertThreads);
  const UnitRange range{blockIdx.x, gridDim.x};
  uint32_t ticket = 0;
  if (threadIdx.x / 32 == kComputeWarps)
    load(shared, params, range, ticket);
  else
    compute(shared, params, range, ticket);
}

__global__ void __launch_bounds__(kExpertThreads, 1)
    expert_gate_up_kernel(const __grid_constant__ ExpertGateUpParams params) {
  run_expert_roles(params, load_expert_gate_up, compute_expert_gate_up);
}

__global__ void __launch_bounds__(kExpertThreads, 1)
    expert_down_kernel(const __grid_constant__ ExpertDownParams params) {
  run_expert_roles(params, load_expert_down, compute_expert_down);
}

}  // namespace mimo_rt::cuda
