// What the executor needs of a GPU. step_device.cu has the real one; tests give one that runs the
// kernel's own source under emulation.
//
// Memory may be allocated, filled and released on any thread; steps are one thread's business.
// `send`, `launch` and `receive` return at once and happen in this order; what they are given stays
// as it is until `wait` says that all of them are over.
#pragma once

#include <functional>
#include <memory>

#include "cuda/device_memory.h"
#include "cuda/persistent_params.h"

namespace mimo_rt::cuda {

class StepDevice : public DeviceMemory {
 public:
  virtual uint32_t num_multiprocessors() const = 0;
  /// Host memory that the device reaches by the same address, zeroed, 256-byte aligned; until it is
  /// released or the device is closed. @throws Error{out_of_memory}
  virtual void* allocate_pinned(uint64_t num_bytes) = 0;
  virtual void release_pinned(void* memory) noexcept = 0;

  virtual void send(void* to, const void* pinned, uint64_t num_bytes) = 0;
  /// @throws as PersistentKernel::launch
  virtual void launch(const PersistentParams& params, uint32_t num_blocks) = 0;
  virtual void receive(void* pinned, const void* from, uint64_t num_bytes) = 0;
  /// False: not over after `timeout_ns`, or before that when `has_news()`. @throws Error{device_lost}
  virtual bool wait(uint64_t timeout_ns, const std::function<bool()>& has_news) = 0;
  bool wait(uint64_t timeout_ns) {
    return wait(timeout_ns, [] { return false; });
  }
};

/// The first visible GPU, as list_backends() describes it. @throws Error{unavailable} when this build or this machine has none
std::shared_ptr<StepDevice> open_step_device();

}  // namespace mimo_rt::cuda
