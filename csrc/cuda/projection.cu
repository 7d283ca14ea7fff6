// Launches of the projection kernels.
#include "cuda/projection.h"

#include "cuda/device/tasks/projection_kernels.cuh"
#include "cuda/launch.cuh"

namespace mimo_rt::cuda {

static_assert(sizeof(ProjectionShared) <= kMaxSharedBytes);

void launch_projection(const ProjectionParams& params, const LaunchOptions& options) {
  check_projection(params);
  const KernelCall call{"cuda.projection",
                        concat("num_tokens ", params.num_tokens, ", rows ", params.rows, ", k ",
                               params.k, ", num_segments ", params.num_segments)};
  launch_kernel(projection_kernel(params), params, options.num_blocks, kBlockThreads,
                sizeof(ProjectionShared), options.stream, call);
}

void launch_rms_norm(const RmsNormParams& params, const LaunchOptions& options) {
  check_rms_norm(params);
  const KernelCall call{"cuda.rms_norm",
                        concat("num_tokens ", params.num_tokens, ", k ", params.k)};
  launch_kernel(rms_norm_kernel, params, options.num_blocks, kComputeWarps * 32, sizeof(NormShared),
                options.stream, call);
}

}  // namespace mimo_rt::cuda
