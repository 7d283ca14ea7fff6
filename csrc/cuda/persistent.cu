// Launch of the persistent kernel.
#include "cuda/persistent.h"

#include "cuda/device/persistent/roles.cuh"
#include "cuda/launch.cuh"

namespace mimo_rt::cuda {

static_assert(kLaunchOutOfResources == cudaErrorLaunchOutOfResources);
static_assert(kCooperativeLaunchTooLarge == cudaErrorCooperativeLaunchTooLarge);

PersistentKernel::PersistentKernel() {
  const KernelCall call{"cuda.persistent", "what the device can hold"};
  check_device(call);
  MIMO_RT_CHECK(device_attribute(cudaDevAttrCooperativeLaunch, call) != 0, unavailable, call.where,
                "device: expected one with cooperative launches, got none");
  MIMO_RT_CUDA_CALL(
      cudaFuncSetAttribute(persistent_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(sizeof(PersistentShared))),
      call);
  int blocks_per_sm = 0;
  MIMO_RT_CUDA_CALL(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_per_sm, persistent_kernel,
                                                    kPersistentThreads, sizeof(PersistentShared)),
      call);
  num_sms_ = static_cast<uint32_t>(device_attribute(cudaDevAttrMultiProcessorCount, call));
  max_blocks_ = static_cast<uint32_t>(blocks_per_sm) * num_sms_;
}

void PersistentKernel::launch(const PersistentParams& params, const LaunchOptions& options) const {
  check_persistent(params, options.num_blocks);
  const KernelCall call{"cuda.persistent", concat("num_blocks ", options.num_blocks,
                                                  ", num_epochs ", params.num_epochs)};
  check_resident(options.num_blocks, max_blocks_, num_sms_);
  const cudaError_t status =
      launch_cooperative_kernel(persistent_kernel, params, options.num_blocks, kPersistentThreads,
                                sizeof(PersistentShared), options.stream, call);
  check_room(status, options.num_blocks);
  check_cuda(status, "cudaLaunchKernelEx", call);
}

}  // namespace mimo_rt::cuda
