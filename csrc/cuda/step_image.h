// The step block as the host writes it before the first step.
#pragma once

#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "cuda/device_operands.h"

namespace mimo_rt::cuda {

template <typename T>
void write(uint8_t* image, uint64_t offset, std::span<const T> values) {
  if (!values.empty()) std::memcpy(image + offset, values.data(), values.size_bytes());
}
template <typename T>
void write_one(uint8_t* image, uint64_t offset, const T& value) {
  write<T>(image, offset, {&value, 1});
}

/// What will be at `offset` of the step block.
template <typename T>
T* at(const DeviceAddresses& device, uint64_t offset) {
  return reinterpret_cast<T*>(device.step + offset);
}

/// cos, sin of the angles of all pairs at positions 0, step, 2 step, …
inline std::vector<double> angles(const RotaryKind& kind, uint64_t num_positions, uint64_t step) {
  std::vector<double> table;
  for (uint64_t i = 0; i < num_positions; ++i)
    for (uint32_t pair = 0; pair < kind.rotary_dim / 2; ++pair) {
      const double angle = static_cast<double>(i * step) *
                           std::pow(kind.theta, -2.0 * pair / kind.rotary_dim);
      table.push_back(std::cos(angle));
      table.push_back(std::sin(angle));
    }
  return table;
}

}  // namespace mimo_rt::cuda
