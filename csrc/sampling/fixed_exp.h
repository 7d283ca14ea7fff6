// exp() for arguments <= 0 with one defined sequence of float64 operations.
//
// The C library's exp differs in the last bit between machines (it picks an FMA variant at run
// time); a draw near a boundary would then differ too. Needs rounding to nearest, and on the host
// -ffp-contract=off.
#pragma once

#include <cstdint>

#include "sampling/float64.h"

namespace mimo_rt {

/// e^x for x <= 0, relative error below 2^-51; 0 for x < -700 and NaN. Without a branch or a conversion to an integer, so
/// that compilers make vectors of it.
MIMO_RT_HOST_DEVICE inline double fixed_exp(double exponent) {
  constexpr double kLog2E = 0x1.71547652b82fep+0;
  constexpr double kLn2High = 0x1.62e42fefa0000p-1;  // 33 bits: k * kLn2High is exact
  constexpr double kLn2Low = 0x1.cf79abc9e3b39p-40;
  constexpr double kRound = 0x1.8p52;  // adding it rounds to an integer, left in the low bits
  const Float64 x = exponent, one = 1.0;
  const Float64 low_bits = x * Float64(kLog2E) + Float64(kRound);
  const Float64 k = low_bits - Float64(kRound);
  const Float64 r = (x - k * Float64(kLn2High)) - k * Float64(kLn2Low);  // |r| <= ln(2) / 2
  // Taylor to r^13 (the next term is below 2^-57), in Estrin's order: short dependency chains.
  const auto line = [&](double a, double b) { return Float64(a) + r * Float64(b); };
  const Float64 r2 = r * r, r4 = r2 * r2, r8 = r4 * r4;
  const Float64 terms_0_3 = (one + r) + r2 * line(0.5, 1.0 / 6);
  const Float64 terms_4_7 = line(1.0 / 24, 1.0 / 120) + r2 * line(1.0 / 720, 1.0 / 5040);
  const Float64 terms_8_11 =
      line(1.0 / 40320, 1.0 / 362880) + r2 * line(1.0 / 3628800, 1.0 / 39916800);
  const Float64 terms_12_13 = line(1.0 / 479001600, 1.0 / 6227020800.0);
  const Float64 sum = (terms_0_3 + r4 * terms_4_7) + r8 * (terms_8_11 + r4 * terms_12_13);
  const uint64_t power = (__builtin_bit_cast(uint64_t, low_bits.value) + 1023) << 52;  // 2^k: the low 12 bits are left
  const double result = sum * Float64(__builtin_bit_cast(double, power));
  const uint64_t kept = exponent >= -700.0 ? ~uint64_t{0} : 0;
  return __builtin_bit_cast(double, __builtin_bit_cast(uint64_t, result) & kept);
}

}  // namespace mimo_rt
