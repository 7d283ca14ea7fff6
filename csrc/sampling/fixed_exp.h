// exp() for arguments <= 0 with one defined sequence of float64 operations.
//
// The C library's exp differs in the last bit between machines (it picks an FMA variant at run
// time); a draw near a boundary would then differ too. Needs -ffp-contract=off and rounding to
// nearest.
#pragma once

#include <bit>
#include <cstdint>

namespace mimo_rt {

/// e^x for x <= 0, relative error below 2^-51; 0 for x < -700.
inline double fixed_exp(double x) {
  constexpr double kLog2E = 0x1.71547652b82fep+0;
  constexpr double kLn2High = 0x1.62e42fefa0000p-1;  // 33 bits: k * kLn2High is exact
  constexpr double kLn2Low = 0x1.cf79abc9e3b39p-40;
  constexpr double kRound = 0x1.8p52;  // adding it rounds to an integer, left in the low bits
  if (!(x >= -700.0)) return 0.0;
  const double shifted = x * kLog2E + kRound;
  const double k = shifted - kRound;
  const double r = (x - k * kLn2High) - k * kLn2Low;  // |r| <= ln(2) / 2
  // Taylor to r^13 (the next term is below 2^-57), in Estrin's order: short dependency chains.
  const double r2 = r * r, r4 = r2 * r2, r8 = r4 * r4;
  const double terms_0_3 = (1.0 + r) + r2 * (0.5 + r * (1.0 / 6));
  const double terms_4_7 = (1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720 + r * (1.0 / 5040));
  const double terms_8_11 = (1.0 / 40320 + r * (1.0 / 362880)) +
                            r2 * (1.0 / 3628800 + r * (1.0 / 39916800));
  const double terms_12_13 = 1.0 / 479001600 + r * (1.0 / 6227020800.0);
  const double sum = (terms_0_3 + r4 * terms_4_7) + r8 * (terms_8_11 + r4 * terms_12_13);
  const uint64_t exponent = static_cast<uint64_t>(static_cast<int64_t>(k) + 1023) << 52;
  return sum * std::bit_cast<double>(exponent);
}

}  // namespace mimo_rt
