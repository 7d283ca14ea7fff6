// The expert tasks with FP8 activations as kernels.
#pragma once

#include "cuda/device/tasks/expert_fp8.cuh"

namespace mimo_rt::cuda {

__global__ void __launch_bounds__(kComputeWarps * 32)
    expert_round_x_kernel(const __grid_constant__ ExpertGateUpFp8Params params) {
  round_rows(params.x, params.num_tokens, params.hidden_size, params.x8);
}

__global__ void __launch_bounds__(kComputeWarps * 32)
    expert_round_act_kernel(const __grid_constant__ ExpertDownFp8Params params) {
  round_rows(params.act, params.route.slot_begin[*params.route.num_active], params.width,
             params.act8);
}

__global__ void __launch_bounds__(kBlockThreads, 1)
    expert_gate_up_fp8_kernel(const __grid_constant__ ExpertGateUpFp8Params params) {
  run_roles<ExpertShared>(params, load_expert_gate_up,
                          compute_expert_gate_up<Fp8Activations, ExpertGateUpFp8Params>);
}

__global__ void __launch_bounds__(kBlockThreads, 1)
    expert_down_fp8_kernel(const __grid_constant__ ExpertDownFp8Params params) {
  run_roles<ExpertShared>(params, load_expert_down,
                          compute_expert_down<Fp8Activations, ExpertDownFp8Params>);
}

}  // namespace mimo_rt::cuda
