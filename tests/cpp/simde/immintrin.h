// Found before the compiler's own <immintrin.h>: AVX-512 intrinsics become SIMDe's portable
// functions, so that the very sources of csrc/cpu/avx512 run on any processor. SIMDe includes
// <immintrin.h> again, hence include_next first.
#pragma once

#pragma GCC system_header
#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

// What SIMDe 0.8.2 lacks or has otherwise.
static inline simde__m256i mimo_rt_cvtepi32_epi16(simde__m512i a) {
  simde__m512i_private wide = simde__m512i_to_private(a);
  simde__m256i_private narrow;
  for (int i = 0; i < 16; ++i) narrow.i16[i] = static_cast<int16_t>(wide.i32[i]);
  return simde__m256i_from_private(narrow);
}
#define _mm512_cvtepi32_epi16(a) mimo_rt_cvtepi32_epi16(a)

static inline simde__m512i mimo_rt_cvtepu8_epi32(simde__m128i a) {
  simde__m128i_private narrow = simde__m128i_to_private(a);
  simde__m512i_private wide;
  for (int i = 0; i < 16; ++i) wide.i32[i] = narrow.u8[i];
  return simde__m512i_from_private(wide);
}
#define _mm512_cvtepu8_epi32(a) mimo_rt_cvtepu8_epi32(a)

// SIMDe's masked loads and stores touch the whole vector; the instructions touch only the selected
// elements.
static inline simde__m256i mimo_rt_maskz_loadu_epi16(simde__mmask16 mask, const void* p) {
  simde__m256i_private value;
  for (int i = 0; i < 16; ++i)
    value.i16[i] = (mask >> i & 1) ? static_cast<const int16_t*>(p)[i] : static_cast<int16_t>(0);
  return simde__m256i_from_private(value);
}
#define _mm256_maskz_loadu_epi16(mask, p) mimo_rt_maskz_loadu_epi16(mask, p)

static inline void mimo_rt_mask_storeu_epi16(void* p, simde__mmask16 mask, simde__m256i a) {
  const simde__m256i_private value = simde__m256i_to_private(a);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) static_cast<int16_t*>(p)[i] = value.i16[i];
}
#define _mm256_mask_storeu_epi16(p, mask, a) mimo_rt_mask_storeu_epi16(p, mask, a)

static inline void mimo_rt_mask_storeu_epi16_512(void* p, simde__mmask32 mask, simde__m512i a) {
  const simde__m512i_private value = simde__m512i_to_private(a);
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) static_cast<int16_t*>(p)[i] = value.i16[i];
}
#define _mm512_mask_storeu_epi16(p, mask, a) mimo_rt_mask_storeu_epi16_512(p, mask, a)

static inline simde__m512 mimo_rt_maskz_loadu_ps(simde__mmask16 mask, const void* p) {
  simde__m512_private value;
  for (int i = 0; i < 16; ++i)
    value.f32[i] = (mask >> i & 1) ? static_cast<const float*>(p)[i] : 0.0f;
  return simde__m512_from_private(value);
}
#define _mm512_maskz_loadu_ps(mask, p) mimo_rt_maskz_loadu_ps(mask, p)

static inline simde__m512i mimo_rt_maskz_loadu_epi16_512(simde__mmask32 mask, const void* p) {
  simde__m512i_private value;
  for (int i = 0; i < 32; ++i)
    value.i16[i] = (mask >> i & 1) ? static_cast<const int16_t*>(p)[i] : static_cast<int16_t>(0);
  return simde__m512i_from_private(value);
}
#define _mm512_maskz_loadu_epi16(mask, p) mimo_rt_maskz_loadu_epi16_512(mask, p)

#define _mm512_testn_epi8_mask(a, b) (~simde_mm512_test_epi8_mask(a, b))

// SIMDe adds the even half of a pair first and keeps subnormals. Intel's manual (VDPBF16PS):
// FP32 FMA of the odd half, then of the even half, round to nearest, subnormals are zero.
static inline float mimo_rt_flushed(float x) {
  return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x;
}

static inline float mimo_rt_half(uint32_t pair, int odd) {
  const uint32_t bits = odd ? pair & 0xffff0000u : pair << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return mimo_rt_flushed(value);
}

static inline simde__m512 mimo_rt_dpbf16_ps(simde__m512 sum, simde__m512i a, simde__m512i b) {
  simde__m512_private acc = simde__m512_to_private(sum);
  const simde__m512i_private x = simde__m512i_to_private(a), y = simde__m512i_to_private(b);
  for (int i = 0; i < 16; ++i)
    for (int odd = 1; odd >= 0; --odd)
      acc.f32[i] =
          mimo_rt_flushed(__builtin_fmaf(mimo_rt_half(x.u32[i], odd), mimo_rt_half(y.u32[i], odd),
                                         mimo_rt_flushed(acc.f32[i])));
  return simde__m512_from_private(acc);
}
#define _mm512_dpbf16_ps(sum, a, b) mimo_rt_dpbf16_ps(sum, (simde__m512i)(a), (simde__m512i)(b))
