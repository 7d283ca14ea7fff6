// The kernels around the products with MXFP8 activations.
#pragma once

#include "cuda/device/tasks/combine_slots.cuh"
#include "cuda/device/tasks/expert_mxfp8.cuh"

namespace mimo_rt::cuda {

__global__ void __launch_bounds__(kComputeWarps * 32)
    expert_round_x_mxfp8_kernel(const __grid_constant__ ExpertGateUpMxfp8Params params) {
  round_slots(params, params.hidden_size,
              [&](uint32_t slot) { return params.x.row(params.route.slot_token[slot]); });
}

__global__ void __launch_bounds__(kComputeWarps * 32)
    expert_swiglu_kernel(const __grid_constant__ ExpertGateUpMxfp8Params params) {
  multiply_gates(params);
}

__global__ void __launch_bounds__(kComputeWarps * 32)
    expert_round_act_mxfp8_kernel(const __grid_constant__ ExpertDownMxfp8Params params) {
  round_slots(params, params.width, [&](uint32_t slot) { return params.act.row(slot); });
}

__global__ void __launch_bounds__(kComputeWarps * 32)
    expert_combine_mxfp8_kernel(const __grid_constant__ ExpertDownMxfp8Params params) {
  combine_slots(*reinterpret_cast<CombineShared*>(ptx::dynamic_shared_memory()), params,
                {blockIdx.x, gridDim.x});
}

}  // namespace mimo_rt::cuda
