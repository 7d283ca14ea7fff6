// Launches of the sampling kernels.
#include "cuda/sampling.h"

#include "cuda/device/tasks/sampling_kernels.cuh"
#include "cuda/launch.cuh"

namespace mimo_rt::cuda {

static_assert(sizeof(DrawShared) <= kMaxSharedBytes);

constexpr uint32_t kThreads = kComputeWarps * 32;

void launch_sample(const SampleParams& params, const LaunchOptions& options) {
  check_sample(params);
  const KernelCall call{"cuda.sample", concat("num_rows ", params.num_rows, ", vocab_size ",
                                              params.vocab_size)};
  launch_kernel(sample_best_kernel, params, options.num_blocks, kThreads, 0, options.stream, call);
  if (params.rules.temperature != 0.0f)
    launch_kernel(sample_weigh_kernel, params, options.num_blocks, kThreads, 0, options.stream, call);
  launch_kernel(sample_draw_kernel, params, options.num_blocks, kThreads, sizeof(DrawShared),
                options.stream, call);
}

void launch_sample_rows(const SampleRowsParams& params, const LaunchOptions& options) {
  check_sample_rows(params);
  const KernelCall call{"cuda.sample_rows", concat("num_rows ", params.num_rows)};
  launch_kernel(sample_rows_kernel, params, options.num_blocks, kThreads, sizeof(DrawShared), options.stream, call);
}

void launch_accept(const AcceptParams& params, const LaunchOptions& options) {
  check_accept(params);
  const KernelCall call{"cuda.accept", concat("num_rows ", params.num_rows)};
  launch_kernel(accept_kernel, params, 1, 32, 0, options.stream, call);
}

}  // namespace mimo_rt::cuda
