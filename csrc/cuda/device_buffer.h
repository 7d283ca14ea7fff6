// Memory of a StepDevice with an owner.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "cuda/step_device.h"

namespace mimo_rt::cuda {

/// Owns; moves; holds the device.
class DeviceBuffer {
 public:
  enum class Place : uint8_t { device, pinned };

  DeviceBuffer() = default;
  /// @throws Error{out_of_memory}
  DeviceBuffer(std::shared_ptr<StepDevice> device, uint64_t num_bytes, Place place = Place::device)
      : device_(std::move(device)), size_bytes_(num_bytes), place_(place) {
    data_ = static_cast<uint8_t*>(place == Place::device ? device_->allocate(num_bytes)
                                                         : device_->allocate_pinned(num_bytes));
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    std::swap(place_, other.place_);
    return *this;
  }
  ~DeviceBuffer() {
    if (!data_) return;
    if (place_ == Place::device) device_->release(data_);
    else device_->release_pinned(data_);
  }

  uint8_t* data() const { return data_; }
  uint64_t size_bytes() const { return size_bytes_; }

 private:
  std::shared_ptr<StepDevice> device_;
  uint8_t* data_ = nullptr;
  uint64_t size_bytes_ = 0;
  Place place_ = Place::device;
};

}  // namespace mimo_rt::cuda
