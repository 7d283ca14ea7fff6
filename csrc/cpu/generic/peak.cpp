// What the products of this folder multiply with, in registers alone as far as compilers see it.
#include "entries.h"

namespace mimo_rt::cpu::generic {
namespace {

enum : uint32_t { kLanes = 48 };  // 12 registers of four

}  // namespace

uint64_t run_products(uint64_t num_rounds) {
  volatile float hidden = 1.0f;
  const float one = hidden;
  float sums[kLanes] = {};
  for (uint64_t round = 0; round < num_rounds; ++round)
    for (uint32_t i = 0; i < kLanes; ++i) sums[i] = sums[i] * one + one;
  for (const float sum : sums) hidden = hidden + sum;
  return num_rounds * kLanes * 2;
}

}  // namespace mimo_rt::cpu::generic
