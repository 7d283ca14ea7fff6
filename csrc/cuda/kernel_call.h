// Which devices kernels run on, and what errors of CUDA say of kernels. No CUDA in here: tested on every machine.
#pragma once

#include <mutex>
#include <string>

#include "core/checks.h"
#include "core/cuda_devices.h"

namespace mimo_rt::cuda {

/// What is being launched, for error messages.
struct KernelCall {
  const char* where;   ///< "cuda.expert_down"
  std::string shapes;  ///< "num_tokens 8, hidden_size 6144, width 256"
};

/// The launch before the one that is being looked at, of whatever thread, device and stream of the
/// process: a kernel's fault is told by a later call, which may be another thread's. Thread-safe.
class LastLaunch {
 public:
  void note(const KernelCall& call) {
    const std::lock_guard lock(mutex_);
    call_ = call;
  }
  /// "; after cuda.expert_down (…) or an earlier launch, of any device"; empty before the first.
  std::string text() const {
    const std::lock_guard lock(mutex_);
    if (!call_.where) return {};
    return concat("; after ", call_.where, " (", call_.shapes, ") or an earlier launch, of any device");
  }

 private:
  mutable std::mutex mutex_;
  KernelCall call_{nullptr, {}};
};

/// What kernels are compiled for, as in CudaDevices::capabilities (cuda_devices.cu).
const char* compiled_capabilities();

/// @throws Error{unavailable} when the kernels, which are compiled for `capabilities`, do not run there
inline void check_compute_capability(const char* where, const char* capabilities, int major, int minor) {
  MIMO_RT_CHECK(has_capability(capabilities, major, minor), unavailable, where, "device: expected compute capability ",
                capabilities, ", which the kernels are compiled for, got ", major, '.', minor);
}

/// Of a CUDA call that failed. `launch`: for the fault of a kernel, LastLaunch::text.
inline std::string cuda_error_text(const char* call, const char* error_name,
                                   const char* description, const KernelCall& kernel,
                                   const std::string& launch) {
  return concat(call, " failed: ", error_name, ", ", description, " (", kernel.shapes, ")", launch);
}

}  // namespace mimo_rt::cuda
