// Launches of the expert kernels for many tokens.
#include "cuda/expert_gemm.h"

#include "cuda/device/tasks/expert_gemm_kernels.cuh"
#include "cuda/expert_call.cuh"

namespace mimo_rt::cuda {
namespace {

static_assert(sizeof(ExpertGemmShared) <= kMaxSharedBytes);
constexpr uint32_t kThreads = kComputeWarps * 32;

}  // namespace

void launch_expert_gate_up_gemm(const ExpertGateUpGemmParams& params,
                                const LaunchOptions& options) {
  check_expert_gate_up_gemm(params);
  const KernelCall call = describe("cuda.expert_gate_up_gemm", params);
  launch_kernel(expert_pack_x_kernel, params, small_blocks(options, params.max_slots), kThreads, 0,
                options.stream, call);
  launch_kernel(expert_gate_up_gemm_kernel, params, options.num_blocks, kGemmThreads,
                sizeof(ExpertGemmShared), options.stream, call);
}

void launch_expert_down_gemm(const ExpertDownGemmParams& params, const LaunchOptions& options) {
  check_expert_down_gemm(params);
  const KernelCall call = describe("cuda.expert_down_gemm", params);
  launch_kernel(expert_pack_act_kernel, params, small_blocks(options, params.max_slots), kThreads,
                0, options.stream, call);
  launch_kernel(expert_down_gemm_kernel, params, options.num_blocks, kGemmThreads,
                sizeof(ExpertGemmShared), options.stream, call);
  launch_kernel(expert_combine_kernel, params, small_blocks(options, params.num_tokens), kThreads,
                sizeof(CombineShared), options.stream, call);
}

}  // namespace mimo_rt::cuda
