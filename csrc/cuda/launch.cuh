// Launching kernels: the right device, room in shared memory, and errors that say what was tried.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "core/checks.h"
#include "cuda/kernel_call.h"

namespace mimo_rt::cuda {

inline LastLaunch last_launch;

/// Whether an error is that of a kernel which ran, told by whatever call comes next.
inline bool is_kernel_fault(cudaError_t status) {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable: return true;
    default: return false;
  }
}

/// Throws with the call's text, the kernel and the shapes, unless `status` is success; for the fault
/// of a kernel also with the last launch before.
/// @throws Error{unavailable} without a driver or a device; else Error{device_lost}
inline void check_cuda(cudaError_t status, const char* call, const KernelCall& kernel) {
  if (status == cudaSuccess) [[likely]]
    return;
  (void)cudaGetLastError();  // the error is sticky until it is read
  const bool is_missing = status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice;
  fail(is_missing ? ErrorCode::unavailable : ErrorCode::device_lost, kernel.where,
       cuda_error_text(call, cudaGetErrorName(status), cudaGetErrorString(status), kernel,
                       is_kernel_fault(status) ? last_launch.text() : std::string()));
}
#define MIMO_RT_CUDA_CALL(call, kernel) ::mimo_rt::cuda::check_cuda((call), #call, (kernel))

inline int device_attribute(cudaDeviceAttr attribute, const KernelCall& kernel) {
  int device = 0, value = 0;
  MIMO_RT_CUDA_CALL(cudaGetDevice(&device), kernel);
  MIMO_RT_CUDA_CALL(cudaDeviceGetAttribute(&value, attribute, device), kernel);
  return value;
}

/// Of the current device, as check_compute_capability says.
inline void check_device(const KernelCall& kernel) {
  const int major = device_attribute(cudaDevAttrComputeCapabilityMajor, kernel);
  const int minor = device_attribute(cudaDevAttrComputeCapabilityMinor, kernel);
  check_compute_capability(kernel.where, compiled_capabilities(), major, minor);
}

/// Launches `function(params)` with `shared_bytes` of dynamic shared memory. `num_blocks` 0: one
/// per multiprocessor.
template <typename Params>
void launch_kernel(void (*function)(Params), const Params& params, uint32_t num_blocks,
                   uint32_t num_threads, uint32_t shared_bytes, cudaStream_t stream,
                   const KernelCall& kernel) {
  check_device(kernel);
  if (num_blocks == 0)
    num_blocks = static_cast<uint32_t>(device_attribute(cudaDevAttrMultiProcessorCount, kernel));
  MIMO_RT_CUDA_CALL(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(shared_bytes)),
                    kernel);
  function<<<num_blocks, num_threads, shared_bytes, stream>>>(params);
  MIMO_RT_CUDA_CALL(cudaGetLastError(), kernel);
  last_launch.note(kernel);
}

/// The same for blocks that wait for each other: CUDA refuses what is not resident at the same time.
/// The caller looks at the status.
template <typename Params>
[[nodiscard]] cudaError_t launch_cooperative_kernel(void (*function)(Params), const Params& params, uint32_t num_blocks,
                               uint32_t num_threads, uint32_t shared_bytes, cudaStream_t stream,
                               const KernelCall& kernel) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(num_blocks);
  config.blockDim = dim3(num_threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  const cudaError_t status = cudaLaunchKernelEx(&config, function, params);
  if (status == cudaSuccess) last_launch.note(kernel);
  else (void)cudaGetLastError();  // else the next call would find it
  return status;
}

}  // namespace mimo_rt::cuda
