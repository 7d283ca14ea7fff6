// Launches of the expert kernels for many tokens with MXFP8 activations.
#include "cuda/expert_mxfp8.h"

#include "cuda/device/tasks/expert_mxfp8_kernels.cuh"
#include "cuda/expert_call.cuh"

namespace mimo_rt::cuda {
namespace {

constexpr uint32_t kThreads = kComputeWarps * 32;

}  // namespace

void launch_expert_gate_up_mxfp8(const ExpertGateUpMxfp8Params& params,
                                 const LaunchOptions& options) {
  check_expert_gate_up_mxfp8(params);
  const KernelCall call = describe("cuda.expert_gate_up_mxfp8", params);
  check_block_scaled(call.where);
  launch_kernel(expert_round_x_mxfp8_kernel, params, small_blocks(options, params.max_slots),
                kThreads, 0, options.stream, call);
  launch_block_scaled_gemm(gate_up_products(params), options, call.where, call.shapes);
  launch_kernel(expert_swiglu_kernel, params, small_blocks(options, params.max_slots), kThreads, 0,
                options.stream, call);
}

void launch_expert_down_mxfp8(const ExpertDownMxfp8Params& params, const LaunchOptions& options) {
  check_expert_down_mxfp8(params);
  const KernelCall call = describe("cuda.expert_down_mxfp8", params);
  check_block_scaled(call.where);
  launch_kernel(expert_round_act_mxfp8_kernel, params, small_blocks(options, params.max_slots),
                kThreads, 0, options.stream, call);
  launch_block_scaled_gemm(down_products(params), options, call.where, call.shapes);
  launch_kernel(expert_combine_mxfp8_kernel, params, small_blocks(options, params.num_tokens),
                kThreads, sizeof(CombineShared), options.stream, call);
}

}  // namespace mimo_rt::cuda
