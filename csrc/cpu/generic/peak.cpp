// What the products of this folder multiply with, in registers alone as far as compilers see it.
#include "entries.h"

namespace mimo_rt::cpu::generic {
namespace {

enum : uint32_t { kLanes = 32 };

/// Runs sum = sum + one * one in every lane.
template <class Number>
static uint64_t run_lanes(uint64_t num_rounds) {
  Number sums[kLanes] = {}, ones[kLanes];
  for (Number& one : ones) one = Number(num_rounds ? 1 : 0);
  for (uint64_t round = 0; round < num_rounds; ++round)
    for (uint32_t i = 0; i < kLanes; ++i) sums[i] = sums[i] * ones[i] + ones[i];
  volatile Number kept = 0;
  for (const Number sum : sums) kept = kept + sum;
  return num_rounds * kLanes * 2;
}

}  // namespace

uint64_t run_products(uint64_t num_rounds) { return run_lanes<float>(num_rounds); }
uint64_t run_products_int8(uint64_t num_rounds) { return run_lanes<uint32_t>(num_rounds); }

}  // namespace mimo_rt::cpu::generic
