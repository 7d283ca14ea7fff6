// fixed_exp of many numbers at once: the same bits, made with the widest vectors of the machine that pay.
#pragma once

#include <cstdint>

namespace mimo_rt {

inline constexpr uint32_t kExpBlock = 64;

/// y[i] = fixed_exp(x[i]) for i in [0, kExpBlock).
void fixed_exp_block(const double* x, double* y);

}  // namespace mimo_rt
