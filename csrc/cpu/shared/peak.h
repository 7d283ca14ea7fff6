// Chains of one instruction, for the folders with vectors.
#pragma once

#include "entries.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

/// Runs sum = step(sum) in kChains registers, so many times.
template <uint32_t kChains, class Sum, class Step>
MIMO_RT_INLINE void run_chains(uint64_t num_rounds, Sum zero, const Step& step) {
  Sum sums[kChains];
#pragma GCC unroll 16
  for (uint32_t i = 0; i < kChains; ++i) {
    sums[i] = zero;
    asm volatile("" : "+v"(sums[i]));  // known to be equal they would be one chain
  }
  for (uint64_t round = 0; round < num_rounds; ++round)
#pragma GCC unroll 16
    for (uint32_t i = 0; i < kChains; ++i) sums[i] = step(sums[i]);
#pragma GCC unroll 16
  for (uint32_t i = 0; i < kChains; ++i) asm volatile("" : : "v"(sums[i]));
}

}  // namespace
}  // namespace mimo_rt::cpu::MIMO_RT_ISA
