// Memory of a GPU, as host code that must also run without one sees it. cuda_memory.cuh has the real
// one; tests give ordinary memory.
#pragma once

#include <cstdint>
#include <string>

namespace mimo_rt::cuda {

class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;

  virtual std::string name() const = 0;
  /// 256-byte aligned; until it is released or the device is closed. @throws Error{out_of_memory}
  virtual void* allocate(uint64_t num_bytes) = 0;
  /// Of `allocate`; nullptr does nothing. Waits until no launch uses it.
  virtual void release(void* memory) noexcept = 0;

  virtual void upload(void* to, const void* from, uint64_t num_bytes) = 0;
  virtual void copy(void* to, const void* from, uint64_t num_bytes) = 0;
  /// Waits for all launches first. @throws Error{device_lost} when one of them failed
  virtual void download(void* to, const void* from, uint64_t num_bytes) = 0;
};

}  // namespace mimo_rt::cuda
