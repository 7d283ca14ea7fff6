// FP8 E4M3 weights: the seven magnitude bits are looked up as the two bytes of a bf16, which is
// exact, by vpermi2b.
#include "entries.h"
#include "gemm.h"

namespace mimo_rt::cpu::avx512 {
namespace {

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

struct Fp8 {
  static constexpr int kFormat = layout::kFp8;
  static constexpr uint32_t kClasses = 2, kWide = 2, kVectors = 8, kSteps = 8, kChains = 2;

  /// One step of 4 k: class 0 is (k, k+1), class 1 (k+2, k+3).
  template <class Emit>
  MIMO_RT_INLINE void expand(const uint8_t* codes, uint32_t j, const Emit& emit) {
    const __m512i v = _mm512_load_si512(codes);
    const __m512i low = look_up(kTables.low, v);
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    const __m512i high =
        _mm512_ternarylogic_epi32(look_up(kTables.high, v), v, sign, 0xf8);  // a | (b & c)
    emit(j, _mm512_unpacklo_epi8(low, high),
         _mm512_unpackhi_epi8(low, high));  // rows 4i, 4i+1 / 4i+2, 4i+3
  }

  MIMO_RT_INLINE __m512 multiply_add(__m512 acc, __m512i w, __m512i x) {
    return dot_pairs(acc, w, x);
  }

  MIMO_RT_INLINE void scales(const uint8_t* tile, uint32_t num_blocks, uint32_t, __m512* scale) {
    const __m512 rows = _mm512_load_ps(
        reinterpret_cast<const float*>(tile + num_blocks * layout::block_bytes(kFormat)));
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

}  // namespace mimo_rt::cpu::avx512
