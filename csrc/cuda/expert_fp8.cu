// Launches of the expert kernels with FP8 activations.
#include "cuda/expert_fp8.h"

#include "cuda/device/tasks/expert_fp8_kernels.cuh"
#include "cuda/expert_call.cuh"

namespace mimo_rt::cuda {
namespace {

constexpr uint32_t kRoundThreads = kComputeWarps * 32;

}  // namespace

void launch_expert_gate_up_fp8(const ExpertGateUpFp8Params& params, const LaunchOptions& options) {
  check_expert_gate_up_fp8(params);
  const KernelCall call = describe("cuda.expert_gate_up_fp8", params);
  launch_kernel(expert_round_x_kernel, params, options.num_blocks, kRoundThreads, 0, options.stream,
                call);
  launch_kernel(expert_gate_up_fp8_kernel, params, options.num_blocks, kBlockThreads,
                sizeof(ExpertShared), options.stream, call);
}

void launch_expert_down_fp8(const ExpertDownFp8Params& params, const LaunchOptions& options) {
  check_expert_down_fp8(params);
  const KernelCall call = describe("cuda.expert_down_fp8", params);
  launch_kernel(expert_round_act_kernel, params, options.num_blocks, kRoundThreads, 0,
                options.stream, call);
  launch_kernel(expert_down_fp8_kernel, params, options.num_blocks, kBlockThreads,
                sizeof(ExpertShared), options.stream, call);
}

}  // namespace mimo_rt::cuda
