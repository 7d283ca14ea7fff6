// What the products of this folder multiply with, in registers alone as far as compilers see it.
#include "entries.h"

namespace mimo_rt::cpu::generic {
namespace {

enum : uint32_t { kLanes = 48 };  // 12 registers of four

}  // namespace

uint64_t run_products(int /*format*/, uint64_t num_rounds) {
  volatile float hidden = 1.0f;
  const float one = hidden;
  float sums[kLanes] = {};
  for (uint64_t round = 0; round < num_rounds; ++round)
    for (uint32_t i = 0; i < kLanes; ++i) sums[i] = sums[i] * one + one;
  for (const float sum : sums) hidden = hidden + sum;
  return num_rounds * kLanes * 2;
}

const char* product_source(int /*format*/) { return "FP32 multiplication, addition"; }

uint64_t run_int8_products(uint64_t num_rounds) {
  volatile int8_t hidden = 1;
  int16_t weights[kLanes];
  for (int16_t& weight : weights) weight = hidden;
  int32_t sums[kLanes] = {};
  for (uint64_t round = 0; round < num_rounds; ++round) {
    const int8_t x = hidden;  // read anew: every product is computed
    for (uint32_t i = 0; i < kLanes; ++i) sums[i] += weights[i] * x;
  }
  for (const int32_t sum : sums) hidden = static_cast<int8_t>(hidden ^ sum);
  return num_rounds * kLanes * 2;
}

const char* int8_product_source() { return "integer multiplication, addition"; }

}  // namespace mimo_rt::cpu::generic
