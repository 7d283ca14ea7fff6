// The vectors of this folder and what ../shared asks of them. Internal linkage only.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "entries.h"

namespace mimo_rt::cpu::avx2 {
namespace {

enum : uint32_t { kLanes = 8, kPairKeys = 4 };
using Vector = __m256;

MIMO_RT_INLINE Vector zero() { return _mm256_setzero_ps(); }
MIMO_RT_INLINE Vector splat(float x) { return _mm256_set1_ps(x); }
// Not splat(*x): gcc 12 would load eight weights of attention at once and shuffle.
MIMO_RT_INLINE Vector splat_at(const float* x) { return _mm256_broadcast_ss(x); }
MIMO_RT_INLINE Vector load(const float* x) { return _mm256_load_ps(x); }
MIMO_RT_INLINE void store(float* y, Vector x) { _mm256_store_ps(y, x); }
MIMO_RT_INLINE void store_unaligned(float* y, Vector x) { _mm256_storeu_ps(y, x); }
MIMO_RT_INLINE Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
MIMO_RT_INLINE Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
MIMO_RT_INLINE Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
MIMO_RT_INLINE Vector divide(Vector a, Vector b) { return _mm256_div_ps(a, b); }
MIMO_RT_INLINE Vector maximum(Vector a, Vector b) { return _mm256_max_ps(a, b); }
MIMO_RT_INLINE Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm256_fmadd_ps(a, b, c);
}

/// Lanes [0, count) set, for masked loads and stores of a row's tail.
MIMO_RT_INLINE __m256i lane_mask(uint32_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

MIMO_RT_INLINE __m256 widen(__m128i bf16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bf16), 16));
}

/// `count` (1..8) elements, the other lanes zero.
MIMO_RT_INLINE __m256 load_bf16(const bf16_t* x, uint32_t count) {
  if (count >= kLanes) return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  alignas(16) bf16_t part[kLanes] = {};
  for (uint32_t i = 0; i < count; ++i) part[i] = x[i];
  return widen(_mm_load_si128(reinterpret_cast<const __m128i*>(part)));
}

MIMO_RT_INLINE __m256 load_f32(const float* x, uint32_t count) {
  return count >= kLanes ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, lane_mask(count));
}

/// The bf16 of each lane in its upper half: round to nearest even; NaN stays NaN (as f32_to_bf16 in
/// csrc/core/numeric.h). The lower half is not cleared.
MIMO_RT_INLINE __m256i round_bf16(__m256 value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_add_epi32(bits, bias);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const __m256 is_nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan));
}

MIMO_RT_INLINE void store_bf16(bf16_t* y, __m256 value, uint32_t count) {
  const __m256i word = _mm256_srli_epi32(round_bf16(value), 16);
  const __m128i packed =
      _mm_packus_epi32(_mm256_castsi256_si128(word), _mm256_extracti128_si256(word, 1));
  if (count >= kLanes) return _mm_storeu_si128(reinterpret_cast<__m128i*>(y), packed);
  alignas(16) bf16_t part[kLanes];
  _mm_store_si128(reinterpret_cast<__m128i*>(part), packed);
  for (uint32_t i = 0; i < count; ++i) y[i] = part[i];
}

/// Up to 16 bf16 of a row.
using Bf16Pairs = __m256i;

/// `count` (1 or more) elements, the others zero.
MIMO_RT_INLINE Bf16Pairs load_pairs(const bf16_t* x, uint32_t count) {
  if (count >= 2 * kLanes) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  alignas(32) bf16_t part[2 * kLanes] = {};
  for (uint32_t i = 0; i < count; ++i) part[i] = x[i];
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(part));
}

MIMO_RT_INLINE Vector even(Bf16Pairs x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
MIMO_RT_INLINE Vector odd(Bf16Pairs x) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

MIMO_RT_INLINE void store_pairs(bf16_t* y, Vector even, Vector odd, uint32_t count) {
  const __m256i x = _mm256_blend_epi16(_mm256_srli_epi32(round_bf16(even), 16), round_bf16(odd),
                                       0xaa);
  if (count >= 2 * kLanes) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), x);
  alignas(32) bf16_t part[2 * kLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(part), x);
  for (uint32_t i = 0; i < count; ++i) y[i] = part[i];
}

/// e^x for x <= 0, relative error below 4 * 2^-24; zero below -87 (e^-87 = 1.6e-38).
///
/// x = n ln2 + r, |r| <= 0.347: n ln2_hi is exact (ln2_hi has 15 bits, |n| < 2^7), so r carries one
/// rounding and n * (error of ln2_lo); the Taylor remainder r^8/8! is 5.2e-9; Horner with FMA adds
/// at most 2^-24 (1 + |r| + |r|^2 + ...) / (1 - |r|) < 2.4 * 2^-24.
MIMO_RT_INLINE __m256 exp_negative(__m256 x) {
  const __m256 in_range = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_GE_OQ);
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693145751953125f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(1.42860682e-6f), r);
  __m256 p = _mm256_set1_ps(1.0f / 5040.0f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  const __m256i scaled = _mm256_add_epi32(_mm256_castps_si256(p), exponent);
  return _mm256_and_ps(_mm256_castsi256_ps(scaled), in_range);
}

/// ((0+4)+(2+6)) + ((1+5)+(3+7)): one fixed order.
MIMO_RT_INLINE float sum_lanes(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

MIMO_RT_INLINE float max_lanes(__m256 v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

MIMO_RT_INLINE float first_lane(Vector x) { return _mm256_cvtss_f32(x); }

/// The first `count` lanes of x, the others of `rest`.
MIMO_RT_INLINE Vector first_lanes_or(Vector x, uint32_t count, Vector rest) {
  return _mm256_blendv_ps(rest, x, _mm256_castsi256_ps(lane_mask(count)));
}

MIMO_RT_INLINE Vector negative_magnitude(Vector x) {
  return _mm256_or_ps(x, _mm256_set1_ps(-0.0f));
}

/// a where sign < 0, b where sign > 0, either one where it is zero.
MIMO_RT_INLINE Vector where_negative(Vector sign, Vector a, Vector b) {
  return _mm256_blendv_ps(b, a, sign);
}

/// out[n] = the sum of the lanes of sums[n], N a multiple of 4.
template <uint32_t N>
MIMO_RT_INLINE void store_sums(const Vector (&sums)[N], float* out) {
#pragma GCC unroll 8
  for (uint32_t n = 0; n < N; n += 4) {
    const __m256 a = _mm256_hadd_ps(sums[n], sums[n + 1]);
    const __m256 b = _mm256_hadd_ps(sums[n + 2], sums[n + 3]);
    const __m256 c = _mm256_hadd_ps(a, b);
    _mm_store_ps(out + n, _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1)));
  }
}

}  // namespace
}  // namespace mimo_rt::cpu::avx2

#include "../shared/query_floats.h"
