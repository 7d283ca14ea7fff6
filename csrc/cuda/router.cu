// Launches of the router kernels.
#include "cuda/router.h"

#include "cuda/device/tasks/router_kernels.cuh"
#include "cuda/launch.cuh"

namespace mimo_rt::cuda {

static_assert(sizeof(RouterShared) <= kMaxSharedBytes);

void launch_router_logits(const RouterLogitsParams& params, const LaunchOptions& options) {
  check_router_logits(params);
  const KernelCall call{"cuda.router_logits",
                        concat("num_tokens ", params.num_tokens, ", num_experts ",
                               params.num_experts, ", hidden_size ", params.hidden_size)};
  launch_kernel(router_logits_kernel(params), params, options.num_blocks, kBlockThreads,
                sizeof(RouterShared), options.stream, call);
}

void launch_select_experts(const SelectExpertsParams& params, const LaunchOptions& options) {
  check_select_experts(params);
  const KernelCall call{
      "cuda.select_experts",
      concat("num_tokens ", params.num_tokens, ", num_experts ", params.num_experts,
             ", experts_per_token ", params.experts_per_token)};
  launch_kernel(select_experts_kernel, params, 1, kComputeWarps * 32, sizeof(SelectShared),
                options.stream, call);
}

}  // namespace mimo_rt::cuda
