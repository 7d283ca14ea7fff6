// A block of INT8 activations in 256-bit registers, for AVX2 and AVX-512.
#pragma once

#include "biased_weights.h"
#include "int8_block.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

MIMO_RT_INLINE uint32_t largest_magnitude(const __m256i (&bits)[2]) {
  const __m256i mask = _mm256_set1_epi16(0x7fff);
  const __m256i largest =
      _mm256_max_epu16(_mm256_and_si256(bits[0], mask), _mm256_and_si256(bits[1], mask));
  // vphminposuw finds a minimum.
  const __m128i pair =
      _mm_max_epu16(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  const __m128i flipped = _mm_minpos_epu16(_mm_xor_si128(pair, _mm_set1_epi16(0x7fff)));
  return (static_cast<uint32_t>(_mm_cvtsi128_si32(flipped)) & 0xffffu) ^ 0x7fffu;
}

/// `start_of` is paired_start or whole_start.
template <class StartOf>
MIMO_RT_INLINE void quantise_block(const bf16_t* x, Int8Block& out, const StartOf& start_of) {
  const auto* halves = reinterpret_cast<const __m256i*>(x);
  const __m256i bits[2] = {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
  const float inverse = begin_block(largest_magnitude(bits), out);
  if (inverse == 0.0f) return;
  __m256i q[4];
  for (uint32_t i = 0; i < 4; ++i) {
    const __m128i eight = i % 2 ? _mm256_extracti128_si256(bits[i / 2], 1)
                                : _mm256_castsi256_si128(bits[i / 2]);
    const __m256 value =
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
    q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(value, _mm256_set1_ps(inverse)));  // nearest even
  }
  const __m256i bytes = pack_bytes(q);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.q), bytes);
  out.start = start_of(bytes);
}

}  // namespace
}  // namespace mimo_rt::cpu::MIMO_RT_ISA
