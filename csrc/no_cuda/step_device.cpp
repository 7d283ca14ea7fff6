// Stands in for csrc/cuda/step_device.cu when the library is built without CUDA.
#include "cuda/step_device.h"

#include "core/checks.h"

namespace mimo_rt::cuda {

std::shared_ptr<StepDevice> open_step_device() {
  fail(ErrorCode::unavailable, "Engine.open",
       "device 'cuda': expected a build with CUDA, got one without. Build with MIMO_RT_CUDA=ON.");
}

}  // namespace mimo_rt::cuda
