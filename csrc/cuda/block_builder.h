// Gives arrays their places in a block of device memory.
#pragma once

#include <cstdint>

namespace mimo_rt::cuda {

/// Offsets in bytes from the start of the block, multiples of 256.
class BlockBuilder {
 public:
  explicit BlockBuilder(uint64_t& bytes) : bytes_(bytes) {}

  uint64_t add(uint64_t num_bytes) {
    constexpr uint64_t kAlignment = 256;
    const uint64_t offset = bytes_;
    bytes_ += (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }
  uint64_t bytes() const { return bytes_; }

 private:
  uint64_t& bytes_;
};

}  // namespace mimo_rt::cuda
