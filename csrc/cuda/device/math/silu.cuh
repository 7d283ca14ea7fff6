// The activation of gated MLPs.
#pragma once

#include "cuda/device/ptx/ptx.cuh"

namespace mimo_rt::cuda {

/// x * sigmoid(x); the exponential never overflows.
__device__ inline float silu(float x) {
  const float e = expf(-fabsf(x));
  return x * ((x < 0.0f ? e : 1.0f) / (1.0f + e));
}

}  // namespace mimo_rt::cuda
