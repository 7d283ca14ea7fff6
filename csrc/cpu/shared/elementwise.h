// Norm, activation and residual updates: one pass over a few thousand elements, bound by L1/L2.
// The includer has included the simd.h of its ISA.
#pragma once

#include "entries.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

MIMO_RT_INLINE Vector square_added(const bf16_t* x, uint32_t count, Vector sum) {
  const Vector value = load_bf16(x, count);
  return multiply_add(value, value, sum);
}

}  // namespace

void rms_norm(const bf16_t* x, const float* weight, float eps, uint32_t num_elements, bf16_t* y) {
  // Four sums hide the latency of the FMA; the order is fixed by num_elements.
  Vector sums[4] = {zero(), zero(), zero(), zero()};
  uint32_t i = 0;
  for (; i + 4 * kLanes <= num_elements; i += 4 * kLanes)
    for (uint32_t j = 0; j < 4; ++j) sums[j] = square_added(x + i + j * kLanes, kLanes, sums[j]);
  for (; i < num_elements; i += kLanes) sums[0] = square_added(x + i, num_elements - i, sums[0]);
  const Vector sum = add(add(sums[0], sums[1]), add(sums[2], sums[3]));
  const float mean = sum_lanes(sum) / static_cast<float>(num_elements);
  const Vector inverse = splat(1.0f / __builtin_sqrtf(mean + eps));
  for (i = 0; i < num_elements; i += kLanes) {
    const uint32_t count = num_elements - i;
    const Vector normed = multiply(load_bf16(x + i, count), inverse);
    store_bf16(y + i, multiply(normed, load_f32(weight + i, count)), count);
  }
}

void silu_mul(const float* gate, const float* up, uint32_t num_elements, bf16_t* out) {
  const Vector one = splat(1.0f);
  for (uint32_t i = 0; i < num_elements; i += kLanes) {
    const uint32_t count = num_elements - i;
    const Vector g = load_f32(gate + i, count);
    // sigmoid(g) = 1 / (1 + e) for g >= 0 and e / (1 + e) below, e = exp(-|g|): never overflows.
    const Vector e = exp_negative(negative_magnitude(g));
    const Vector numerator = where_negative(g, e, one);
    const Vector sigmoid = divide(numerator, add(one, e));
    const Vector product = multiply(multiply(g, sigmoid), load_f32(up + i, count));
    store_bf16(out + i, product, count);
  }
}

void add_residual(const float* delta, uint32_t num_elements, bf16_t* residual) {
  for (uint32_t i = 0; i < num_elements; i += kLanes) {
    const uint32_t count = num_elements - i;
    const Vector sum = add(load_bf16(residual + i, count), load_f32(delta + i, count));
    store_bf16(residual + i, sum, count);
  }
}

void axpy(float weight, const float* y, uint32_t num_elements, float* acc) {
  const Vector w = splat(weight);
  uint32_t i = 0;
  for (; i + kLanes <= num_elements; i += kLanes)
    store_unaligned(acc + i, multiply_add(w, load_f32(y + i, kLanes), load_f32(acc + i, kLanes)));
  for (; i < num_elements; ++i) acc[i] = __builtin_fmaf(weight, y[i], acc[i]);
}

}  // namespace mimo_rt::cpu::MIMO_RT_ISA
