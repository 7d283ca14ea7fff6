// What the weight formats with two classes per row (mxfp4, fp8) share; see gemm.h for the lanes.
#pragma once

#include "gemm.h"

namespace mimo_rt::cpu::avx2 {
namespace {

/// 8 rows per unit; the bytes of a dword lane are 4 k of one row.
struct TwoClasses {
  static constexpr uint32_t kClasses = 2, kUnits = 2, kSteps = 16;

  MIMO_RT_INLINE __m256i load_codes(const uint8_t* tile, uint32_t vector, uint32_t unit) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(tile + vector * 64 + unit * 32));
  }

  /// Low and high bytes of the bf16 weights of k..k+3 -> the k-steps (k, k+2) and (k+1, k+3).
  template <class Emit>
  MIMO_RT_INLINE void emit_bytes(__m256i low, __m256i high, uint32_t step, const Emit& emit) {
    const __m256i pair0 = _mm256_unpacklo_epi8(low, high);  // rows 0 1 | 4 5
    const __m256i pair1 = _mm256_unpackhi_epi8(low, high);  // rows 2 3 | 6 7
    const __m256i odd = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    emit(step, _mm256_castsi256_ps(_mm256_slli_epi32(pair0, 16)),
         _mm256_castsi256_ps(_mm256_slli_epi32(pair1, 16)));
    emit(step + 1, _mm256_castsi256_ps(_mm256_and_si256(pair0, odd)),
         _mm256_castsi256_ps(_mm256_and_si256(pair1, odd)));
  }

  MIMO_RT_INLINE void finish(const float* acc, uint32_t unit_stride, float* y) {
    for (uint32_t unit = 0; unit < 2; ++unit) {
      const float* a = acc + unit * unit_stride;
      _mm256_storeu_ps(y + unit * 8, _mm256_hadd_ps(_mm256_load_ps(a), _mm256_load_ps(a + 8)));
    }
  }
};

}  // namespace
}  // namespace mimo_rt::cpu::avx2
