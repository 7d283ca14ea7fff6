// MXFP4 weights: vpermw looks up a bf16 per nibble or, for FP32 FMA, vpermps an FP32.
#include "entries.h"
#include "gemm.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

#if defined(MIMO_RT_AVX512_BF16)
// bf16 of the 16 codes, twice: vpermw reads five index bits, and the fifth belongs to the next
// nibble.
alignas(64) const uint16_t kE2m1[32] = {
    0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80,
    0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0, 0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040,
    0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0};
#else
alignas(64) const float kE2m1[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                     -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
#endif

struct Mxfp4 : Pairs {
  static constexpr int kFormat = layout::kMxfp4;
  static constexpr uint32_t kClasses = 1, kWide = 1, kVectors = 4, kChains = 4;
  static constexpr uint32_t kSteps = 16 * kStepsPerPair;

#if defined(MIMO_RT_AVX512_BF16)
  /// The four pairs of 8 k: (0, 2) (4, 6) (1, 3) (5, 7).
  template <class Emit>
  MIMO_RT_INLINE void expand(const uint8_t* codes, uint32_t j, const Emit& emit) {
    const __m512i table = _mm512_load_si512(kE2m1);
    const __m512i v = _mm512_load_si512(codes);
    emit_pair(emit, j * 4, _mm512_permutexvar_epi16(v, table));
    emit_pair(emit, j * 4 + 1, _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 4), table));
    emit_pair(emit, j * 4 + 2, _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 8), table));
    emit_pair(emit, j * 4 + 3, _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 12), table));
  }
#else
  /// The 8 k 2, 0, 6, 4, 3, 1, 7, 5. vpermps reads four index bits. Every second nibble comes down
  /// to them by a load, which takes no vector unit: it reads up to three bytes of the next vector,
  /// behind the last of the scales.
  template <class Emit>
  MIMO_RT_INLINE void expand(const uint8_t* codes, uint32_t j, const Emit& emit) {
    const __m512i table = _mm512_load_si512(kE2m1);
    uint32_t step = 8 * j;
#pragma GCC unroll 2
    for (uint32_t byte = 0; byte < 2; ++byte) {
      const __m512i even = _mm512_loadu_si512(codes + byte);
      const __m512i odd = _mm512_loadu_si512(codes + byte + 2);
      emit(step++, _mm512_permutexvar_epi32(odd, table));
      emit(step++, _mm512_permutexvar_epi32(even, table));
      emit(step++, _mm512_permutexvar_epi32(_mm512_srli_epi32(odd, 4), table));
      emit(step++, _mm512_permutexvar_epi32(_mm512_srli_epi32(even, 4), table));
    }
  }
#endif

  MIMO_RT_INLINE void scales(const uint8_t* scales, uint32_t block, __m512* scale) {
    const auto* e8m0 = reinterpret_cast<const __m128i*>(scales + block * 16);
    const __m512i exponent = _mm512_cvtepu8_epi32(_mm_load_si128(e8m0));
    // Byte 0 means 2^-127, the subnormal 0x00400000.
    scale[0] = _mm512_castsi512_ps(
        _mm512_max_epi32(_mm512_slli_epi32(exponent, 23), _mm512_set1_epi32(0x00400000)));
  }

  MIMO_RT_INLINE void finish(const float* acc, float* y) {
    _mm512_storeu_ps(y, _mm512_load_ps(acc));
  }
};

}  // namespace

void gemm_mxfp4(const GemmArgs& args) { gemm_format<Mxfp4>(args); }

}  // namespace mimo_rt::cpu::MIMO_RT_ISA
