// Norm, activation and residual updates: one pass over a few thousand elements, bound by L1/L2.
#include "entries.h"
#include "simd.h"

namespace mimo_rt::cpu::avx2 {
namespace {

MIMO_RT_INLINE __m256 square_added(const bf16_t* x, uint32_t count, __m256 sum) {
  const __m256 value = load_bf16(x, count);
  return _mm256_fmadd_ps(value, value, sum);
}

}  // namespace

void rms_norm(const bf16_t* x, const float* weight, float eps, uint32_t num_elements, bf16_t* y) {
  // Four sums hide the latency of the FMA; the order is fixed by num_elements.
  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                    _mm256_setzero_ps()};
  uint32_t i = 0;
  for (; i + 4 * kLanes <= num_elements; i += 4 * kLanes)
    for (uint32_t j = 0; j < 4; ++j) sums[j] = square_added(x + i + j * kLanes, kLanes, sums[j]);
  for (; i < num_elements; i += kLanes) sums[0] = square_added(x + i, num_elements - i, sums[0]);
  const __m256 sum =
      _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
  const float mean = sum_lanes(sum) / static_cast<float>(num_elements);
  const __m256 inverse = _mm256_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
  for (i = 0; i < num_elements; i += kLanes) {
    const uint32_t count = num_elements - i;
    const __m256 normed = _mm256_mul_ps(load_bf16(x + i, count), inverse);
    store_bf16(y + i, _mm256_mul_ps(normed, load_f32(weight + i, count)), count);
  }
}

void silu_mul(const float* gate, const float* up, uint32_t num_elements, bf16_t* out) {
  const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
  for (uint32_t i = 0; i < num_elements; i += kLanes) {
    const uint32_t count = num_elements - i;
    const __m256 g = load_f32(gate + i, count);
    // sigmoid(g) = 1 / (1 + e) for g >= 0 and e / (1 + e) below, e = exp(-|g|): never overflows.
    const __m256 e = exp_negative(_mm256_or_ps(g, sign));
    const __m256 numerator = _mm256_blendv_ps(one, e, g);
    const __m256 sigmoid = _mm256_div_ps(numerator, _mm256_add_ps(one, e));
    const __m256 product = _mm256_mul_ps(_mm256_mul_ps(g, sigmoid), load_f32(up + i, count));
    store_bf16(out + i, product, count);
  }
}

void add_residual(const float* delta, uint32_t num_elements, bf16_t* residual) {
  for (uint32_t i = 0; i < num_elements; i += kLanes) {
    const uint32_t count = num_elements - i;
    const __m256 sum = _mm256_add_ps(load_bf16(residual + i, count), load_f32(delta + i, count));
    store_bf16(residual + i, sum, count);
  }
}

void axpy(float weight, const float* y, uint32_t num_elements, float* acc) {
  const __m256 w = _mm256_set1_ps(weight);
  uint32_t i = 0;
  for (; i + kLanes <= num_elements; i += kLanes)
    _mm256_storeu_ps(acc + i, _mm256_fmadd_ps(w, _mm256_loadu_ps(y + i), _mm256_loadu_ps(acc + i)));
  for (; i < num_elements; ++i) acc[i] = __builtin_fmaf(weight, y[i], acc[i]);
}

}  // namespace mimo_rt::cpu::avx2
