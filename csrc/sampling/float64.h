// Float64 whose products and sums are rounded one by one, on every compiler and device.
#pragma once

#include "core/host_device.h"

namespace mimo_rt {

/// A double that no compiler fuses into a multiply-add: on the host -ffp-contract=off sees to that, in kernels the
/// intrinsics do.
struct Float64 {
  double value;

  MIMO_RT_HOST_DEVICE constexpr Float64(double v) : value(v) {}  // NOLINT: converting on purpose
  MIMO_RT_HOST_DEVICE constexpr operator double() const { return value; }
};

#if defined(__CUDA_ARCH__)
__device__ inline Float64 operator*(Float64 a, Float64 b) { return __dmul_rn(a.value, b.value); }
__device__ inline Float64 operator+(Float64 a, Float64 b) { return __dadd_rn(a.value, b.value); }
__device__ inline Float64 operator-(Float64 a, Float64 b) { return __dsub_rn(a.value, b.value); }
#else
MIMO_RT_HOST_DEVICE inline Float64 operator*(Float64 a, Float64 b) { return a.value * b.value; }
MIMO_RT_HOST_DEVICE inline Float64 operator+(Float64 a, Float64 b) { return a.value + b.value; }
MIMO_RT_HOST_DEVICE inline Float64 operator-(Float64 a, Float64 b) { return a.value - b.value; }
#endif

}  // namespace mimo_rt
