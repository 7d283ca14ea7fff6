// Memory of a GPU, as host code that must also run without one sees it. cuda_memory.cuh has the real
// one; tests give ordinary memory.
#pragma once

#include <cstdint>
#include <string>

#include "core/checks.h"

namespace mimo_rt::cuda {

class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;

  virtual std::string name() const = 0;
  /// Device memory that nobody has taken.
  virtual uint64_t free_bytes() const = 0;
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

/// What an allocation that failed says.
inline std::string no_room_text(const DeviceMemory& device, uint64_t num_bytes) {
  return concat("expected room for ", num_bytes, " bytes on ", device.name(), ", where ", device.free_bytes(),
                " are free. Close other sessions and programs.");
}

/// Whether `num_bytes` fit, before they are allocated. `what` needs them, `advice` says what to do:
/// whole sentences.
/// @throws Error{out_of_memory} with the number of bytes that are missing
void check_free(const DeviceMemory& device, uint64_t num_bytes, const char* what, const char* advice);

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
