// Found before the compiler's own <immintrin.h>: AVX-512 intrinsics become SIMDe's portable functions, so that the very
// sources of csrc/cpu/avx512 run on any processor. SIMDe includes <immintrin.h> again, hence include_next first.
#pragma once

#pragma GCC system_header
#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

// What SIMDe 0.8.2 lacks.
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
