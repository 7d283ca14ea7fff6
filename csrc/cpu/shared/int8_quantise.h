// A block of INT8 activations in 256-bit registers, for AVX2 and AVX-512.
#pragma once

#include <immintrin.h>

#include "int8_block.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

/// E2M1 by code, doubled and moved into 0..24: unsigned bytes, as vpmaddubsw and vpdpbusd want them.
enum : int { kWeightOffset = 12 };
alignas(64) const uint8_t kOffsetWeights[64] = {
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

MIMO_RT_INLINE uint32_t largest_magnitude(__m256i x0, __m256i x1) {
  const __m256i magnitude = _mm256_set1_epi16(0x7fff);
  const __m256i largest =
      _mm256_max_epu16(_mm256_and_si256(x0, magnitude), _mm256_and_si256(x1, magnitude));
  const __m128i eight =
      _mm_max_epu16(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  // The smallest of the complements.
  const __m128i inverted = _mm_xor_si128(eight, _mm_set1_epi16(-1));
  return 0xffffu - static_cast<uint32_t>(_mm_extract_epi16(_mm_minpos_epu16(inverted), 0));
}

/// Eight activations, scaled and rounded to nearest even.
MIMO_RT_INLINE __m256i round_scaled(__m128i bf16, __m256 factor) {
  const __m256 x = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bf16), 16));
  return _mm256_cvtps_epi32(_mm256_mul_ps(x, factor));
}

MIMO_RT_INLINE __m256i load_half(const bf16_t* x) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
}

/// -12 times the sum of q over k with k % 4 < 2 in the low 16 bits, over the others in the high
/// ones.
MIMO_RT_INLINE int32_t paired_correction(__m256i q) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
  __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 0xb1));
  return _mm_cvtsi128_si32(_mm_mullo_epi16(sum, _mm_set1_epi16(-kWeightOffset)));
}

/// -12 times the sum of q.
MIMO_RT_INLINE int32_t whole_correction(__m256i q) {
  const uint32_t pair = static_cast<uint32_t>(paired_correction(q));
  return static_cast<int16_t>(pair & 0xffffu) + static_cast<int16_t>(pair >> 16);
}

/// `correct` is one of the two above.
template <class Correct>
MIMO_RT_INLINE void quantise_block(const bf16_t* x, Int8Block& out, const Correct& correct) {
  const __m256i x0 = load_half(x), x1 = load_half(x + 16);
  const float inverse = begin_block(largest_magnitude(x0, x1), out);
  if (inverse == 0.0f) return;
  const __m256 factor = _mm256_set1_ps(inverse);
  const __m256i q0 = round_scaled(_mm256_castsi256_si128(x0), factor);
  const __m256i q1 = round_scaled(_mm256_extracti128_si256(x0, 1), factor);
  const __m256i q2 = round_scaled(_mm256_castsi256_si128(x1), factor);
  const __m256i q3 = round_scaled(_mm256_extracti128_si256(x1, 1), factor);
  // Packing goes by halves of registers; the dwords end up as 0 2 4 6 | 1 3 5 7.
  const __m256i mixed =
      _mm256_packs_epi16(_mm256_packs_epi32(q0, q1), _mm256_packs_epi32(q2, q3));
  const __m256i q =
      _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.q), q);
  out.correction = correct(q);
}

}  // namespace
}  // namespace mimo_rt::cpu::MIMO_RT_ISA
