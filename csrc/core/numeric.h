// Scalar conversions between float and the small formats. Exact definitions: every kernel is tested against these.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace mimo_rt {

/// A bfloat16 as its bits: the storage type of activations, KV and BF16 weights.
using bf16_t = uint16_t;

inline float bf16_to_f32(bf16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

/// Round to nearest even; NaN stays NaN (quiet).
inline bf16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16_t>((bits >> 16) | 0x40u);
  return static_cast<bf16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// OCP E4M3 (no infinities; 0x7f and 0xff are NaN).
inline float fp8_e4m3_to_f32(uint8_t bits) {
  const uint32_t exponent = (bits >> 3) & 15u, mantissa = bits & 7u;
  const float sign = (bits & 0x80u) ? -1.0f : 1.0f;
  if ((bits & 0x7fu) == 0x7fu) return std::numeric_limits<float>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -9);
  return sign * std::ldexp(static_cast<float>(8u + mantissa), static_cast<int>(exponent) - 10);
}

/// OCP E2M1, code in 0..15: 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives.
inline float fp4_e2m1_to_f32(uint8_t code) {
  constexpr float kMagnitude[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  const float magnitude = kMagnitude[code & 7u];
  return (code & 8u) ? -magnitude : magnitude;
}

/// OCP E8M0: 2^(bits-127). 0xff is NaN and is refused by the checkpoint reader.
inline float e8m0_to_f32(uint8_t bits) {
  if (bits == 0xff) return std::numeric_limits<float>::quiet_NaN();
  if (bits == 0) return std::bit_cast<float>(0x00400000u);  // 2^-127 is subnormal
  return std::bit_cast<float>(uint32_t{bits} << 23);
}

}  // namespace mimo_rt
