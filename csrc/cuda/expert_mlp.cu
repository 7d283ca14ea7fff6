// Launches of the expert kernels.
#include "cuda/device/tasks/expert_kernels.cuh"
#include "cuda/expert_mlp.h"
#include "cuda/launch.cuh"

namespace mimo_rt::cuda {
namespace {

static_assert(sizeof(ExpertShared) <= kMaxSharedBytes);

template <typename Params>
KernelCall describe(const char* where, const Params& params) {
  return {where, concat("num_tokens ", params.num_tokens, ", max_slots ", params.max_slots,
                        ", hidden_size ", params.hidden_size, ", width ", params.width)};
}

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
