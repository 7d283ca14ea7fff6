// Stands in for csrc/cuda/cuda_devices.cu when the library is built without CUDA.
#include "core/cuda_devices.h"

namespace mimo_rt {

CudaDevices list_cuda_devices() {
  return {.built = false, .devices = {}, .reason = "not built into this wheel", .capabilities = {}};
}

}  // namespace mimo_rt
