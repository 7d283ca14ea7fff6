// Norm, activation and residual updates: one pass over a few thousand elements, bound by L1/L2.
#include "entries.h"
#include "simd.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

MIMO_RT_INLINE __m512 square_added(const bf16_t* x, uint32_t count, __m512 sum) {
  const __m512 value = load_bf16(x, count);
  return _mm512_fmadd_ps(value, value, sum);
}

MIMO_RT_INLINE __m512 negative_magnitude(__m512 x) {
  const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000u));
  return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(x), sign));
}

}  // namespace

void rms_norm(const bf16_t* x, const float* weight, float eps, uint32_t num_elements, bf16_t* y) {
  // Four sums hide the latency of the FMA; the order is fixed by num_elements.
  __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                    _mm512_setzero_ps()};
  uint32_t i = 0;
  for (; i + 4 * kLanes <= num_elements; i += 4 * kLanes)
    for (uint32_t j = 0; j < 4; ++j) sums[j] = square_added(x + i + j * kLanes, kLanes, sums[j]);
  for (; i < num_elements; i += kLanes) sums[0] = square_added(x + i, num_elements - i, sums[0]);
  const __m512 sum =
      _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
  const float mean = sum_lanes(sum) / static_cast<float>(num_elements);
  const __m512 inverse = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
  for (i = 0; i < num_elements; i += kLanes) {
    const uint32_t count = num_elements - i;
    const __m512 normed = _mm512_mul_ps(load_bf16(x + i, count), inverse);
    store_bf16(y + i, _mm512_mul_ps(normed, load_f32(weight + i, count)), count);
  }
}

void silu_mul(const float* gate, const float* up, uint32_t num_elements, bf16_t* out) {
  const __m512 one = _mm512_set1_ps(1.0f);
  for (uint32_t i = 0; i < num_elements; i += kLanes) {
    const uint32_t count = num_elements - i;
    const __m512 g = load_f32(gate + i, count);
    // sigmoid(g) = 1 / (1 + e) for g >= 0 and e / (1 + e) below, e = exp(-|g|): never overflows.
    const __m512 e = exp_negative(negative_magnitude(g));
    const __mmask16 negative = _mm512_cmp_ps_mask(g, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 numerator = _mm512_mask_mov_ps(one, negative, e);
    const __m512 sigmoid = _mm512_div_ps(numerator, _mm512_add_ps(one, e));
    const __m512 product = _mm512_mul_ps(_mm512_mul_ps(g, sigmoid), load_f32(up + i, count));
    store_bf16(out + i, product, count);
  }
}

void add_residual(const float* delta, uint32_t num_elements, bf16_t* residual) {
  for (uint32_t i = 0; i < num_elements; i += kLanes) {
    const uint32_t count = num_elements - i;
    const __m512 sum = _mm512_add_ps(load_bf16(residual + i, count), load_f32(delta + i, count));
    store_bf16(residual + i, sum, count);
  }
}

void axpy(float weight, const float* y, uint32_t num_elements, float* acc) {
  const __m512 w = _mm512_set1_ps(weight);
  uint32_t i = 0;
  for (; i + kLanes <= num_elements; i += kLanes)
    _mm512_storeu_ps(acc + i, _mm512_fmadd_ps(w, _mm512_loadu_ps(y + i), _mm512_loadu_ps(acc + i)));
  for (; i < num_elements; ++i) acc[i] = __builtin_fmaf(weight, y[i], acc[i]);
}

}  // namespace mimo_rt::cpu::MIMO_RT_ISA
