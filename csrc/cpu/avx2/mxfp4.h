// What the kernels for MXFP4 weights share: codes as biased weights, their products with signed
// bytes, scales.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "entries.h"

#include "../shared/biased_weights.h"

namespace mimo_rt::cpu::avx2 {
namespace {

MIMO_RT_INLINE __m256i load_bytes(const uint8_t* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}

/// The biased weights of 4 k of 8 rows: one half of the nibbles of 32 bytes. Dword lanes are rows.
MIMO_RT_INLINE __m256i look_up(const uint8_t* codes, uint32_t half) {
  const __m256i bytes = load_bytes(codes);
  const __m256i code = half ? _mm256_srli_epi16(bytes, 4) : bytes;
  return _mm256_shuffle_epi8(load_bytes(kBiasedWeights),
                             _mm256_and_si256(code, _mm256_set1_epi8(15)));
}

/// Scales of 8 rows. Byte 0 means 2^-127, the subnormal 0x00400000.
MIMO_RT_INLINE __m256 scales(const uint8_t* e8m0) {
  const __m256i exponent =
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(e8m0)));
  return _mm256_castsi256_ps(
      _mm256_max_epi32(_mm256_slli_epi32(exponent, 23), _mm256_set1_epi32(0x00400000)));
}

/// Four bytes for every row.
MIMO_RT_INLINE __m256i broadcast(const int8_t* bytes) {
  int32_t four;
  __builtin_memcpy(&four, bytes, sizeof(four));
  return _mm256_set1_epi32(four);
}

/// sum += products of weights with four bytes: per row two 16-bit sums.
MIMO_RT_INLINE void add_products(__m256i weights, __m256i bytes, __m256i& sum) {
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, bytes));
  asm("" : "+x"(sum));  // gcc would turn the chain into a tree and spill for it
}

/// Four tiles ahead, as in gemm.h.
MIMO_RT_INLINE void prefetch(const uint8_t* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p) + 4 * 1088, _MM_HINT_T0);
}

}  // namespace
}  // namespace mimo_rt::cpu::avx2
