// What MXFP4 matrices are multiplied with, and what INT8 activations are: the definition that every kernel is tested
// against.
#pragma once

#include "core/numeric.h"

#include <algorithm>
#include <span>

namespace mimo_rt {

enum class Activations : uint8_t {
  bf16,  ///< as the model defines them
  int8,  ///< for MXFP4 matrices: 32 at a time, as integers with a common FP32 scale
};

/// Replaces 32 BF16 numbers by what their INT8 form stands for: q * scale with scale = max |x| / 127 and
/// q = x * (127 / max |x|) rounded to the nearest integer, ties to even, each step in FP32; so |q| <= 127. All of them
/// become zero when the largest is below 2^-100, and NaN when one of them is not finite.
inline void round_to_int8(std::span<double, 32> x) {
  float amax = 0.0f;
  bool is_finite = true;
  for (const double value : x) {
    is_finite &= std::isfinite(value);
    amax = std::max(amax, static_cast<float>(std::fabs(value)));
  }
  const float scale = amax / 127.0f, inverse = 127.0f / amax;
  for (double& value : x) {
    if (!is_finite) value = std::numeric_limits<double>::quiet_NaN();
    else if (amax < 0x1p-100f) value = 0.0;
    else value = double{std::nearbyint(static_cast<float>(value) * inverse)} * double{scale};
  }
}

}  // namespace mimo_rt
