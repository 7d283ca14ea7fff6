// E2M1 weights as unsigned bytes and what undoes their bias, in 256-bit registers, for AVX2 and
// AVX-512.
//
// A weight doubled is an integer w in -12..12. vpmaddubsw and vpdpbusd want one unsigned factor:
// w + kWeightBias. Sums that start at -kWeightBias times the sum of the other factors end right.
#pragma once

#include <immintrin.h>

#include "../tile_layout.h"
#include "entries.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

enum : int32_t { kWeightBias = 12 };

/// w + kWeightBias of the 16 codes, once for every 16 bytes of a register.
alignas(64) const uint8_t kBiasedWeights[64] = {
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

/// Where the sums of a row start: 32 bits, or the 16-bit sums over k with k % 4 < 2 (low half) and
/// over the others (high half). Those wrap on the way, and end right: 16 * 12 * 128 < 2^15.
using Start = int32_t;

/// The two 16-bit starts for 32 signed bytes.
MIMO_RT_INLINE Start paired_start(__m256i bytes) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(kWeightBias), bytes);
  __m128i sum =
      _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  sum = _mm_add_epi16(sum, _mm_unpackhi_epi64(sum, sum));
  sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 1));
  return _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), sum));
}

/// The 32-bit start.
MIMO_RT_INLINE Start whole_start(__m256i bytes) {
  const uint32_t pair = static_cast<uint32_t>(paired_start(bytes));
  return static_cast<int16_t>(pair & 0xffffu) + static_cast<int16_t>(pair >> 16);
}

/// 32-bit integers that fit a byte -> bytes, in order.
MIMO_RT_INLINE __m256i pack_bytes(const __m256i (&words)[4]) {
  const __m256i a = _mm256_packs_epi32(words[0], words[1]);
  const __m256i b = _mm256_packs_epi32(words[2], words[3]);
  return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b),
                                     _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

}  // namespace
}  // namespace mimo_rt::cpu::MIMO_RT_ISA
