// Norm, activation and residual updates.
#include <math.h>

#include "entries.h"
#include "scalar.h"

namespace mimo_rt::cpu::generic {

void rms_norm(const bf16_t* x, const float* weight, float eps, uint32_t num_elements, bf16_t* y) {
  float sums[8] = {};
  for (uint32_t i = 0; i < num_elements; ++i) sums[i % 8] += widen(x[i]) * widen(x[i]);
  const float sum =
      ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
  const float inverse = 1.0f / __builtin_sqrtf(sum / static_cast<float>(num_elements) + eps);
  for (uint32_t i = 0; i < num_elements; ++i) y[i] = narrow(widen(x[i]) * inverse * weight[i]);
}

void silu_mul(const float* gate, const float* up, uint32_t num_elements, bf16_t* out) {
  for (uint32_t i = 0; i < num_elements; ++i) {
    // sigmoid(g) = 1 / (1 + e) for g >= 0 and e / (1 + e) below, e = exp(-|g|): never overflows.
    const float g = gate[i], e = expf(-fabsf(g));
    const float sigmoid = (g < 0.0f ? e : 1.0f) / (1.0f + e);
    out[i] = narrow(g * sigmoid * up[i]);
  }
}

void add_residual(const float* delta, uint32_t num_elements, bf16_t* residual) {
  for (uint32_t i = 0; i < num_elements; ++i) residual[i] = narrow(widen(residual[i]) + delta[i]);
}

void axpy(float weight, const float* y, uint32_t num_elements, float* acc) {
  for (uint32_t i = 0; i < num_elements; ++i) acc[i] += weight * y[i];
}

}  // namespace mimo_rt::cpu::generic
