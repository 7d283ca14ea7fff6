// FP8 E4M3 weights: a code is looked up as the two bytes of a bf16, which is exact.
#include "entries.h"
#include "gemm.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

#if defined(MIMO_RT_AVX512_BF16)
/// High and low bytes of the bf16 of every non-negative code.
struct Tables {
  alignas(64) uint8_t high[128];
  alignas(64) uint8_t low[128];
};

static constexpr Tables make_tables() {
  Tables tables = {};
  for (uint32_t code = 0; code < 128; ++code) {
    uint32_t exponent = code >> 3,
             mantissa = code & 7u;  // value = (8 + mantissa) * 2^(exponent - 10)
    if (exponent == 0 && mantissa != 0) {
      exponent = 1;
      for (; mantissa < 8; mantissa *= 2)
        --exponent;  // may wrap below zero: modular arithmetic, 120 follows
      mantissa -= 8;
    }
    const uint32_t bits = code == 0 ? 0 : ((exponent + 120) << 7) + (mantissa << 4);
    tables.high[code] = static_cast<uint8_t>(bits >> 8);
    tables.low[code] = static_cast<uint8_t>(bits);
  }
  return tables;
}

constexpr Tables kTables = make_tables();

MIMO_RT_INLINE __m512i look_up(const uint8_t* table, __m512i codes) {
  return _mm512_permutex2var_epi8(_mm512_load_si512(table), codes, _mm512_load_si512(table + 64));
}

/// With VBMI the seven magnitude bits index tables of 128 bytes (vpermi2b).
MIMO_RT_INLINE void look_up_bytes(__m512i codes, __m512i& low, __m512i& high) {
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  low = look_up(kTables.low, codes);
  high = _mm512_ternarylogic_epi32(look_up(kTables.high, codes), codes, sign, 0xf8);  // a | (b & c)
}
#else
// A code is s eeee mmm. Where eeee is not zero, the bf16 has the exponent eeee + 120: its high byte
// depends on the nibble s.eee alone, its low byte is the other nibble, e.mmm, shifted by four. The
// rest, mmm * 2^-9, is corrected by mmm.
alignas(16) const uint8_t kHigh[16] = {0x3c, 0x3d, 0x3e, 0x3f, 0x40, 0x41, 0x42, 0x43,
                                       0xbc, 0xbd, 0xbe, 0xbf, 0xc0, 0xc1, 0xc2, 0xc3};
alignas(16) const uint8_t kSmallFlips[16] = {0x3c, 0x07, 0x07, 0x07};  ///< against 0x3c or 0xbc
alignas(16) const uint8_t kSmallLow[16] = {0x00, 0x00, 0x80, 0xc0, 0x00, 0x20, 0x40, 0x60};

MIMO_RT_INLINE __m512i four_times(const uint8_t* table) {
  return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
}

MIMO_RT_INLINE void look_up_bytes(__m512i codes, __m512i& low, __m512i& high) {
  const __m512i mask = _mm512_set1_epi8(15);
  const __m512i s_eee = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
  const __m512i e_mmm = _mm512_and_si512(codes, mask);
  const __mmask64 small = _mm512_testn_epi8_mask(codes, _mm512_set1_epi8(0x78));
  high = _mm512_xor_si512(_mm512_shuffle_epi8(four_times(kHigh), s_eee),
                          _mm512_maskz_shuffle_epi8(small, four_times(kSmallFlips), e_mmm));
  low = _mm512_mask_shuffle_epi8(_mm512_slli_epi16(e_mmm, 4), small, four_times(kSmallLow), e_mmm);
}
#endif

struct Fp8 : Pairs {
  static constexpr int kFormat = layout::kFp8;
  static constexpr uint32_t kClasses = 2, kWide = 2, kVectors = 8, kChains = 1;
  static constexpr bool kExpandsOnce = true;  ///< it costs a third of the products of 8 tokens
  static constexpr uint32_t kSteps = 8 * kStepsPerPair;

  /// One pair of 4 k: class 0 is (k, k+1), class 1 (k+2, k+3).
  template <class Emit>
  MIMO_RT_INLINE void expand(const uint8_t* codes, uint32_t j, const Emit& emit) {
    __m512i low, high;
    look_up_bytes(_mm512_load_si512(codes), low, high);
    emit_pair(emit, j, _mm512_unpacklo_epi8(low, high),  // rows 4i, 4i + 1
              _mm512_unpackhi_epi8(low, high));          // rows 4i + 2, 4i + 3
  }

  MIMO_RT_INLINE void scales(const uint8_t* scales, uint32_t, __m512* scale) {
    const __m512 rows = _mm512_load_ps(reinterpret_cast<const float*>(scales));
    scale[0] = _mm512_unpacklo_ps(rows, rows);
    scale[1] = _mm512_unpackhi_ps(rows, rows);
  }

  MIMO_RT_INLINE void finish(const float* acc, float* y) {
    const __m512 a = _mm512_load_ps(acc), b = _mm512_load_ps(acc + 16);
    _mm512_storeu_ps(y,
                     _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd)));
  }
};

}  // namespace

void gemm_fp8(const GemmArgs& args) { gemm_format<Fp8>(args); }

}  // namespace mimo_rt::cpu::MIMO_RT_ISA
