// Launch of the relay kernel.
#include "cuda/edge_relay.h"

#include "cuda/device/tasks/edge_relay.cuh"
#include "cuda/launch.cuh"

namespace mimo_rt::cuda {

void launch_edge_relay(const EdgeRelayParams& params, const LaunchOptions& options) {
  const KernelCall call{"cuda.edge_relay", concat("edge ", static_cast<uint32_t>(params.edge),
                                                  ", num_hops ", params.num_hops)};
  const uint32_t num_blocks =
      options.num_blocks ? options.num_blocks
                         : static_cast<uint32_t>(
                               device_attribute(cudaDevAttrMultiProcessorCount, call));
  check_edge_relay(params, num_blocks);
  check_device(call);
  MIMO_RT_CUDA_CALL(launch_cooperative_kernel(edge_relay_kernel, params, num_blocks, kRelayThreads,
                                              sizeof(RelayShared), options.stream, call),
                    call);
}

}  // namespace mimo_rt::cuda
