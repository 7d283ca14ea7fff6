// The largest of some values and where it was.
#pragma once

#include "cuda/device/ptx/ptx.cuh"

namespace mimo_rt::cuda {

/// The largest value and its column, the lowest among equals. A NaN is never the largest.
struct Best {
  float value = ptx::as_float(0xff800000u);  // -infinity
  uint32_t column = 0xffffffffu;

  __device__ void take(float other, uint32_t other_column) {
    if (other > value || (other == value && other_column < column)) {
      value = other;
      column = other_column;
    }
  }
};

}  // namespace mimo_rt::cuda
