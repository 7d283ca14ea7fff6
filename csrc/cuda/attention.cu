// Launches of the attention kernels.
#include "cuda/attention.h"

#include "cuda/device/tasks/attention_kernels.cuh"
#include "cuda/launch.cuh"

namespace mimo_rt::cuda {

static_assert(sizeof(AttentionShared) <= kMaxSharedBytes);

void launch_attention(const AttentionParams& params, const LaunchOptions& options) {
  check_attention(params);
  const KernelCall call{"cuda.attention",
                        concat("num_rows ", params.num_rows, ", heads ", params.num_q_heads, '/',
                               params.num_kv_heads, " of ", params.qk_head_dim, '/',
                               params.v_head_dim, ", window_tokens ", params.window_tokens,
                               ", split_keys ", params.split_keys)};
  launch_kernel(attention_kernel, params, options.num_blocks, kBlockThreads,
                sizeof(AttentionShared), options.stream, call);
  launch_kernel(attention_combine_kernel, params, options.num_blocks, kComputeWarps * 32, 0,
                options.stream, call);
}

}  // namespace mimo_rt::cuda
