// E2M1 codes to BF16 in registers, exactly, without a table. The bit layout is that of
// weights/cuda_tiles.h.
#pragma once

#include "cuda/device/math/fragments.cuh"
#include "weights/cuda_tiles.h"

namespace mimo_rt::cuda {

/// The four pairs of a word as BF16 of value * 2^-126 (0.5 becomes a subnormal).
__device__ __forceinline__ void unpack_e2m1(uint32_t word, uint32_t (&pairs)[4]) {
  constexpr uint32_t kCode = 0x81c081c0u;  // sign, exponent, mantissa of both halves
  pairs[0] = word & kCode;
  pairs[1] = word << 3 & kCode;
  pairs[2] = word << 6 & kCode;
  pairs[3] = (word << 1 & 0x80008000u) | (word >> 3 & 0x01800180u) | (word >> 7 & 0x00400040u);
}

/// BF16x2 of 2^126 * 2^-kCudaScaleShift * scale: what turns the result of `unpack_e2m1` into
/// weight * 2^-kCudaScaleShift. Exact for scales of 2^-108 .. 2^25.
__device__ __forceinline__ uint32_t e2m1_factor(uint32_t e8m0) {
  constexpr uint32_t kExponent = 126 - kCudaScaleShift;  // both biases are 127
  return (e8m0 + kExponent) * (1u << 7 | 1u << 23);
}

/// `tile`: 544 bytes in shared memory.
__device__ __forceinline__ WeightFragments load_tile(const uint8_t* tile, uint32_t lane_idx) {
  const auto codes = *reinterpret_cast<const ptx::Words4*>(tile + lane_idx * 16);
  const uint32_t block = lane_idx % 4 / 2;
  const uint8_t* scales = tile + kCudaTileCodeBytes + lane_idx / 4 * 4 + block * 2;
  const uint32_t both = *reinterpret_cast<const uint16_t*>(scales);
  WeightFragments fragments;
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {  // rows g, rows g + 8
    const uint32_t factor = e2m1_factor(half == 0 ? both & 0xff : both >> 8);
#pragma unroll
    for (uint32_t j = 0; j < 2; ++j) {
      uint32_t pairs[4];
      unpack_e2m1(codes.word[2 * half + j], pairs);
#pragma unroll
      for (uint32_t p = 0; p < 4; ++p)
        fragments.a[2 * j + p / 2][p % 2 * 2 + half] = ptx::mul_bf16x2(pairs[p], factor);
    }
  }
  return fragments;
}

}  // namespace mimo_rt::cuda
