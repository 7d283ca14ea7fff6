// Ordinary memory as that of an emulated GPU.
#pragma once

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "core/checks.h"
#include "cuda/device_memory.h"
#include "cuda/memory_place.h"

namespace fixture {

/// `Base`: DeviceMemory or an interface that extends it. What nobody has written is NaN.
template <typename Base>
class HostDeviceMemory : public Base {
 public:
  ~HostDeviceMemory() override {
    for (const auto& [memory, size] : blocks_) std::free(memory);
  }
  std::string name() const override { return "emulated"; }
  uint64_t free_bytes() const override { return free_bytes_left; }
  void* allocate(uint64_t num_bytes) override {
    if (num_bytes > free_bytes_left)
      mimo_rt::fail(mimo_rt::ErrorCode::out_of_memory, "emulated", mimo_rt::cuda::no_room_text(*this, num_bytes));
    const uint64_t size = (num_bytes + 255) / 256 * 256 + 256;
    void* memory = std::aligned_alloc(256, size);
    std::memset(memory, 0xff, size);
    blocks_[memory] = num_bytes;
    free_bytes_left -= num_bytes;
    return memory;
  }
  void release(void* memory) noexcept override {
    const auto found = blocks_.find(memory);
    if (found == blocks_.end()) return;
    free_bytes_left += found->second;
    std::free(memory);
    blocks_.erase(found);
  }
  void upload(void* to, const void* from, uint64_t num_bytes) override {
    std::memcpy(to, from, num_bytes);
  }
  void copy(void* to, const void* from, uint64_t num_bytes) override {
    std::memcpy(to, from, num_bytes);
  }
  void download(void* to, const void* from, uint64_t num_bytes) override {
    std::memcpy(to, from, num_bytes);
  }

  /// What nobody has allocated here is the host's.
  void check_operand(const char* where, const char* name, const void* pointer) const override {
    using Kind = mimo_rt::cuda::MemoryPlace::Kind;
    ++num_places_checked;
    auto after = blocks_.upper_bound(const_cast<void*>(pointer));
    const bool is_here =
        after != blocks_.begin() && pointer <= static_cast<uint8_t*>((--after)->first) + after->second;
    mimo_rt::cuda::check_place(where, name, {is_here ? Kind::device : Kind::host}, 0);
  }

  mutable uint64_t num_places_checked = 0;
  uint64_t free_bytes_left = uint64_t{1} << 40;

 protected:
  const std::map<void*, uint64_t>& blocks() const { return blocks_; }

 private:
  std::map<void*, uint64_t> blocks_;
};

}  // namespace fixture
