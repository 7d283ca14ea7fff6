// Asks the CUDA runtime which devices there are. Works, with an empty answer, on a machine without a driver.
#include "core/cuda_devices.h"

#include "cuda/kernel_call.h"

#include <cuda_runtime.h>

namespace mimo_rt {
namespace {

/// Why there is no device. Without a driver the runtime calls it too old.
std::string reason_of(cudaError_t status) {
  int driver = 0;
  if (status != cudaErrorInsufficientDriver || cudaDriverGetVersion(&driver) != cudaSuccess)
    return cudaGetErrorString(status);
  return old_driver_text(CUDART_VERSION, driver);
}

}  // namespace

const char* cuda::compiled_capabilities() { return MIMO_RT_CUDA_CAPABILITIES; }

CudaDevices list_cuda_devices() {
  CudaDevices result;
  result.built = true;
  result.capabilities = cuda::compiled_capabilities();
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    result.reason = reason_of(status);
    (void)cudaGetLastError();  // the error is sticky until it is read
    return result;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    result.devices.push_back({.name = properties.name,
                              .compute_major = properties.major,
                              .compute_minor = properties.minor,
                              .num_sms = static_cast<uint32_t>(properties.multiProcessorCount),
                              .memory_bytes = properties.totalGlobalMem});
  }
  if (result.devices.empty()) result.reason = "no CUDA device";
  return result;
}

}  // namespace mimo_rt
