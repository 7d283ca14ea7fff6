// The expert tasks for many tokens as kernels.
//
// sm_100a has no wgmma. Its own matrix instructions (tcgen05) take MXFP4 weights only beside MXFP8
// or smaller activations, so prefill would give other results than decode: an option of its own,
// expert_mxfp8.h. For BF16 products the unpacked weights would have to be written back to shared or
// tensor memory. Here the products are mma.sync on that device: same source, same bits, enough as
// long as reading the weights is what takes the time.
#pragma once

#include "cuda/device/tasks/combine_slots.cuh"
#include "cuda/device/tasks/expert_gemm.cuh"

namespace mimo_rt::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(MIMO_RT_HOST_EMULATION)
using DeviceProducts = GroupProducts;
#else
using DeviceProducts = WarpProducts;
#endif

__global__ void __launch_bounds__(kComputeWarps * 32)
    expert_pack_x_kernel(const __grid_constant__ ExpertGateUpGemmParams params) {
  pack_x<DeviceProducts>(params);
}

__global__ void __launch_bounds__(kComputeWarps * 32)
    expert_pack_act_kernel(const __grid_constant__ ExpertDownGemmParams params) {
  pack_act<DeviceProducts>(params);
}

__global__ void __launch_bounds__(kGemmThreads, 1)
    expert_gate_up_gemm_kernel(const __grid_constant__ ExpertGateUpGemmParams params) {
  run_gemm<GateUpGemm, DeviceProducts>(params);
}

__global__ void __launch_bounds__(kGemmThreads, 1)
    expert_down_gemm_kernel(const __grid_constant__ ExpertDownGemmParams params) {
  run_gemm<DownGemm, DeviceProducts>(params);
}

__global__ void __launch_bounds__(kComputeWarps * 32)
    expert_combine_kernel(const __grid_constant__ ExpertDownGemmParams params) {
  combine_slots(*reinterpret_cast<CombineShared*>(ptx::dynamic_shared_memory()), params,
                {blockIdx.x, gridDim.x});
}

}  // namespace mimo_rt::cuda
