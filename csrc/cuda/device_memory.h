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

  /// Whether kernels on this device reach an operand, as check_place says.
  /// @throws Error{invalid_argument} that names it
  virtual void check_operand(const char* where, const char* name, const void* pointer) const = 0;
};

/// For as long as it lives, checks of kernel arguments on its thread also ask `device` where operands
/// lie: when they are made or used for the first time. Later calls pay nothing for it.
class PlaceChecks {
 public:
  explicit PlaceChecks(const DeviceMemory& device) : outer_(current_) { current_ = &device; }
  PlaceChecks(const PlaceChecks&) = delete;
  PlaceChecks& operator=(const PlaceChecks&) = delete;
  ~PlaceChecks() { current_ = outer_; }

  static void check(const char* where, const char* name, const void* pointer) {
    if (current_) current_->check_operand(where, name, pointer);
  }

 private:
  inline static thread_local const DeviceMemory* current_ = nullptr;
  const DeviceMemory* const outer_;
};

}  // namespace mimo_rt::cuda
