// The vectors of this folder and what ../shared asks of them. Internal linkage only.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "entries.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

enum : uint32_t { kLanes = 16, kPairKeys = 8 };
using Vector = __m512;

MIMO_RT_INLINE Vector zero() { return _mm512_setzero_ps(); }
MIMO_RT_INLINE Vector splat(float x) { return _mm512_set1_ps(x); }
MIMO_RT_INLINE Vector splat_at(const float* x) { return _mm512_set1_ps(*x); }
MIMO_RT_INLINE Vector load(const float* x) { return _mm512_load_ps(x); }
MIMO_RT_INLINE void store(float* y, Vector x) { _mm512_store_ps(y, x); }
MIMO_RT_INLINE void store_unaligned(float* y, Vector x) { _mm512_storeu_ps(y, x); }
MIMO_RT_INLINE Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
MIMO_RT_INLINE Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
MIMO_RT_INLINE Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
MIMO_RT_INLINE Vector divide(Vector a, Vector b) { return _mm512_div_ps(a, b); }
MIMO_RT_INLINE Vector maximum(Vector a, Vector b) { return _mm512_max_ps(a, b); }
MIMO_RT_INLINE Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm512_fmadd_ps(a, b, c);
}

/// Lanes [0, count) of a row's tail.
MIMO_RT_INLINE __mmask16 lane_mask(uint32_t count) {
  return count >= kLanes ? __mmask16{0xffff} : static_cast<__mmask16>((1u << count) - 1u);
}

MIMO_RT_INLINE __m512 widen(__m256i bf16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16));
}

/// Up to 16 elements, the other lanes zero.
MIMO_RT_INLINE __m512 load_bf16(const bf16_t* x, uint32_t count) {
  return widen(_mm256_maskz_loadu_epi16(lane_mask(count), x));
}

MIMO_RT_INLINE __m512 load_f32(const float* x, uint32_t count) {
  return _mm512_maskz_loadu_ps(lane_mask(count), x);
}

/// The bf16 of each lane in its upper half: round to nearest even; NaN stays NaN. Not vcvtneps2bf16:
/// it flushes subnormals. The lower half is not cleared.
MIMO_RT_INLINE __m512i round_bf16(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_add_epi32(bits, bias);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  return _mm512_mask_mov_epi32(rounded, is_nan, quiet);
}

MIMO_RT_INLINE void store_bf16(bf16_t* y, __m512 value, uint32_t count) {
  const __m512i word = _mm512_srli_epi32(round_bf16(value), 16);
  _mm256_mask_storeu_epi16(y, lane_mask(count), _mm512_cvtepi32_epi16(word));
}

/// Up to 32 bf16 of a row.
using Bf16Pairs = __m512i;

MIMO_RT_INLINE __mmask32 pairs_mask(uint32_t count) {
  return count >= 2 * kLanes ? __mmask32{0xffffffff} : static_cast<__mmask32>((1u << count) - 1u);
}

/// `count` (1 or more) elements, the others zero.
MIMO_RT_INLINE Bf16Pairs load_pairs(const bf16_t* x, uint32_t count) {
  return _mm512_maskz_loadu_epi16(pairs_mask(count), x);
}

MIMO_RT_INLINE Vector even(Bf16Pairs x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
MIMO_RT_INLINE Vector odd(Bf16Pairs x) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

MIMO_RT_INLINE void store_pairs(bf16_t* y, Vector even, Vector odd, uint32_t count) {
  const __m512i low = _mm512_srli_epi32(round_bf16(even), 16);
  const __m512i x = _mm512_mask_blend_epi16(0xaaaaaaaau, low, round_bf16(odd));
  _mm512_mask_storeu_epi16(y, pairs_mask(count), x);
}

/// e^x for x <= 0, relative error below 4 * 2^-24; zero below -87. The derivation is in
/// ../avx2/simd.h.
MIMO_RT_INLINE __m512 exp_negative(__m512 x) {
  const __mmask16 in_range = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_GE_OQ);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145751953125f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860682e-6f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040.0f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  const __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
  const __m512i scaled = _mm512_add_epi32(_mm512_castps_si512(p), exponent);
  return _mm512_maskz_mov_ps(in_range, _mm512_castsi512_ps(scaled));
}

/// Halves, quarters, eighths: one fixed order (written out: _mm512_reduce_add_ps promises none).
MIMO_RT_INLINE float sum_lanes(__m512 v) {
  __m512 s = _mm512_add_ps(v, _mm512_shuffle_f32x4(v, v, 0x4e));
  s = _mm512_add_ps(s, _mm512_shuffle_f32x4(s, s, 0xb1));
  __m128 q = _mm512_castps512_ps128(s);
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

MIMO_RT_INLINE float max_lanes(__m512 v) { return _mm512_reduce_max_ps(v); }

MIMO_RT_INLINE float first_lane(Vector x) { return _mm_cvtss_f32(_mm512_castps512_ps128(x)); }

/// The first `count` lanes of x, the others of `rest`.
MIMO_RT_INLINE Vector first_lanes_or(Vector x, uint32_t count, Vector rest) {
  return _mm512_mask_mov_ps(rest, lane_mask(count), x);
}

MIMO_RT_INLINE Vector negative_magnitude(Vector x) {
  const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000u));
  return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(x), sign));
}

/// a where sign < 0, b where sign > 0, either one where it is zero.
MIMO_RT_INLINE Vector where_negative(Vector sign, Vector a, Vector b) {
  return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(sign, _mm512_setzero_ps(), _CMP_LT_OQ), a);
}

/// [a0 + a2, a1 + a3, b0 + b2, b1 + b3] of the quarters of a and b.
MIMO_RT_INLINE __m512 add_halves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}

/// The quarters of a, then of b, two after the other added: [a0 + a1, a2 + a3, b0 + b1, b2 + b3].
MIMO_RT_INLINE __m512 add_quarters(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

/// [a, b, c, d]: of each, the sum of its four quarters.
MIMO_RT_INLINE __m512 sum_quarters(__m512 a, __m512 b, __m512 c, __m512 d) {
  return add_quarters(add_halves(a, b), add_halves(c, d));
}

/// out[n] = the sum of the lanes of sums[n], added as by sum_lanes; N is a multiple of 8. Sums that are folded
/// together take three operations each instead of nine.
template <uint32_t N>
MIMO_RT_INLINE void store_sums(const Vector (&sums)[N], float* out) {
  static_assert(N % 8 == 0);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 4, 8, 12, 1, 5, 9, 13);
#pragma GCC unroll 8
  for (uint32_t n = 0; n < N; n += 8) {
    const __m512 x = sum_quarters(sums[n], sums[n + 1], sums[n + 2], sums[n + 3]);
    const __m512 y = sum_quarters(sums[n + 4], sums[n + 5], sums[n + 6], sums[n + 7]);
    // In each quarter: lanes 0 + 2, 1 + 3 of x, then of y; then the two of each.
    const __m512 pairs = _mm512_add_ps(_mm512_shuffle_ps(x, y, 0x44), _mm512_shuffle_ps(x, y, 0xee));
    const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(pairs, pairs, 0x88), _mm512_shuffle_ps(pairs, pairs, 0xdd));
    _mm256_store_ps(out + n, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, all)));
  }
}

#if defined(MIMO_RT_AVX512_BF16)
enum : uint32_t { kQueryFloats = kLanes };  ///< see ../shared/query_floats.h: pairs stay as they are

MIMO_RT_INLINE void store_query(float* place, Bf16Pairs q) { _mm512_store_si512(place, q); }

MIMO_RT_INLINE Vector add_products(Bf16Pairs key, const float* place, Vector sum) {
  return _mm512_dpbf16_ps(sum, (__m512bh)key, (__m512bh)_mm512_load_si512(place));
}
#endif

}  // namespace
}  // namespace mimo_rt::cpu::MIMO_RT_ISA

#if !defined(MIMO_RT_AVX512_BF16)
#include "../shared/query_floats.h"
#endif
