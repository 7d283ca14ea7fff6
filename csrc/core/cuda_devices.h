// CUDA devices that this build can see; answers, never throws, without a driver or without CUDA in the build.
#pragma once

#include "core/checks.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mimo_rt {

struct CudaDevice {
  std::string name;
  int compute_major = 0, compute_minor = 0;
  uint32_t num_sms = 0;
  uint64_t memory_bytes = 0;
};

struct CudaDevices {
  bool built = false;  ///< CUDA code is part of this library
  std::vector<CudaDevice> devices;
  std::string reason;  ///< why `devices` is empty
  /// What kernels are compiled for: "9.0 or 10.0". Binaries of sm_90a and sm_100a run on just that.
  std::string capabilities;
};

CudaDevices list_cuda_devices();

/// Whether a list as in CudaDevices has this compute capability.
inline bool has_capability(std::string_view capabilities, int major, int minor) {
  constexpr const char* kOr = " or ";
  const std::string list = concat(kOr, capabilities, kOr), wanted = concat(kOr, major, '.', minor, kOr);
  return list.find(wanted) != std::string::npos;
}

/// Why a driver of version `driver` (1000 major + 10 minor; 0: none) does not do for a runtime of version `runtime`.
inline std::string old_driver_text(int runtime, int driver) {
  const auto text = [](int version) { return concat(version / 1000, '.', version % 1000 / 10); };
  if (driver == 0) return "no CUDA driver on this machine";
  return concat("expected a driver for CUDA ", text(runtime), ", got one for CUDA ", text(driver));
}

}  // namespace mimo_rt
