// Launches of the expert kernels.
#include "cuda/device/tasks/expert_kernels.cuh"
#include "cuda/expert_call.cuh"
#include "cuda/expert_mlp.h"

namespace mimo_rt::cuda {
namespace {

static_assert(sizeof(ExpertShared) <= kMaxSharedBytes);

}  // namespace

void launch_expert_gate_up(const ExpertGateUpParams& params, const LaunchOptions& options) {
  check_expert_gate_up(params);
  launch_kernel(expert_gate_up_kernel, params, options.num_blocks, kBlockThreads,
                sizeof(ExpertShared), options.stream, describe("cuda.expert_gate_up", params));
}

void launch_expert_down(const ExpertDownParams& params, const LaunchOptions& options) {
  check_expert_down(params);
  launch_kernel(expert_down_kernel, params, options.num_blocks, kBlockThreads,
                sizeof(ExpertShared), options.stream, describe("cuda.expert_down", params));
}

}  // namespace mimo_rt::cuda
