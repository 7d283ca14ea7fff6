// The device that tests of the executor run on: the emulated GPU, or (MIMO_RT_TEST_ON_GPU) a real one.
#pragma once

#if defined(MIMO_RT_TEST_ON_GPU)
#include "cuda/step_device.h"
#else
#include "emulated_step_device.h"
#endif

#include <memory>

namespace fixture {

#if defined(MIMO_RT_TEST_ON_GPU)
inline constexpr uint32_t kHangTimeoutMs = 200;
inline std::shared_ptr<mimo_rt::cuda::StepDevice> open_test_device(uint64_t = 0) {
  return mimo_rt::cuda::open_step_device();
}
#else
/// A wait of so long has hung.
inline constexpr uint32_t kHangTimeoutMs = EmulatedStepDevice::kPatienceMs;
/// `seed`: of the emulated schedule.
inline std::shared_ptr<EmulatedStepDevice> open_test_device(uint64_t seed = 0) {
  auto device = std::make_shared<EmulatedStepDevice>();
  device->seed = seed;
  return device;
}
#endif

}  // namespace fixture
