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

/// 16 rows x 64 k as the A operands of two products of E4M3, and what rows g and g + 8 of both are to
/// be multiplied by. Byte i of a word is k = 16q + 8j + {4, 2, 0, 6}[i], + 1 in words 2 and 3.
struct E4m3Fragments {
  uint32_t a[2][4];
  float factor[2];
};

/// Picks E4M3 codes by magnitude from `low`, `high` (codes 0..3, 4..7), and adds the signs: the even
/// k of a word of cuda_tiles.h, then the odd.
__device__ __forceinline__ void unpack_e4m3_codes(uint32_t word, uint32_t low, uint32_t high,
                                                  uint32_t& even, uint32_t& odd) {
  const uint32_t magnitudes = (word & 0x00070007u) | (word << 1 & 0x00700070u) |
                              (word << 2 & 0x07000700u) | (word << 3 & 0x60006000u) |
                              (word >> 1 & 0x10001000u);
  const uint32_t signs = (word >> 9 & 0x00010001u) | (word >> 8 & 0x00100010u) |
                         (word >> 7 & 0x01000100u) | (word >> 2 & 0x10001000u);
  constexpr uint32_t kSigns = 0x8000u;  // byte 1 is the sign bit
  even = ptx::pick_bytes(low, high, magnitudes & 0xffffu) |
         ptx::pick_bytes(kSigns, 0, signs & 0xffffu);
  odd = ptx::pick_bytes(low, high, magnitudes >> 16) | ptx::pick_bytes(kSigns, 0, signs >> 16);
}

/// `tile`: 544 bytes in shared memory. E4M3 has no room for block scales, only for the ratio of the
/// two blocks of a row: the smaller one's codes are shifted down, the larger scale is the factor.
__device__ __forceinline__ E4m3Fragments load_tile_e4m3(const uint8_t* tile, uint32_t lane_idx) {
  constexpr uint32_t kMaxShift = 11, kShift = 6;  // codes are value * 2^6, so that 4 is 2^8
  const auto codes = *reinterpret_cast<const ptx::Words4*>(tile + lane_idx * 16);
  const uint32_t scales =
      *reinterpret_cast<const uint32_t*>(tile + kCudaTileCodeBytes + lane_idx / 4 * 4);
  const bool is_second = lane_idx % 4 / 2 != 0;
  E4m3Fragments fragments;
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {  // rows g, rows g + 8
    const uint32_t first = scales >> 8 * half & 0xff, second = scales >> (16 + 8 * half) & 0xff;
    const uint32_t larger = first > second ? first : second;
    const uint32_t shift = larger - (is_second ? second : first);
    uint32_t low = 0x6c686000u - shift * 0x08080800u, high = 0x7c787470u - shift * 0x08080808u;
    if (shift > kMaxShift) low = high = 0;
    fragments.factor[half] = larger > kShift ? ptx::as_float((larger - kShift) << 23) : 0.0f;
#pragma unroll
    for (uint32_t j = 0; j < 2; ++j)
      unpack_e4m3_codes(codes.word[2 * half + j], low, high, fragments.a[j][half],
                        fragments.a[j][2 + half]);
  }
  return fragments;
}

}  // namespace mimo_rt::cuda
