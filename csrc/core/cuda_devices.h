// CUDA devices that this build can see; answers, never throws, without a driver or without CUDA in the build.
#pragma once

#include <cstdint>
#include <string>
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
};

CudaDevices list_cuda_devices();

}  // namespace mimo_rt
