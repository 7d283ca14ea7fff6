// bf16 conversion for this folder, as in csrc/core/numeric.h, with internal linkage.
#pragma once

#include <stdint.h>

#include "../kernels.h"

namespace mimo_rt::cpu::generic {
namespace {

static inline float widen(bf16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

/// Round to nearest even; NaN stays NaN.
static inline bf16_t narrow(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16_t>((bits >> 16) | 0x40u);
  return static_cast<bf16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace
}  // namespace mimo_rt::cpu::generic
