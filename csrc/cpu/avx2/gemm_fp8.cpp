// FP8 E4M3 weights: the code's nibbles are looked up as the two bytes of a bf16, which is exact,
// and widened to FP32.
//
// With h = s.eee and l = e.mmm the bf16 of a code is byte H(h), byte l << 4, unless eee is zero:
// then the weight is l * 2^-9, the four-bit integers of exponent fields 0 and 1, and both bytes
// depend on l alone. Going through half floats would be shorter, but their subnormals (every code
// with a zero exponent field) stall some processors.
#include "entries.h"
#include "two_classes.h"

namespace mimo_rt::cpu::avx2 {
namespace {

#define MIMO_RT_TWICE(...) {__VA_ARGS__, __VA_ARGS__}
/// High byte by h; zero (or the sign) where eee is zero.
alignas(32) const uint8_t kHigh[32] = MIMO_RT_TWICE(0, 61, 62, 63, 64, 65, 66, 67, 128, 189, 190,
                                                    191, 192, 193, 194, 195);
/// 0x80 by h where eee is not zero: makes the following lookups yield zero.
alignas(32) const uint8_t kSkip[32] = MIMO_RT_TWICE(0, 128, 128, 128, 128, 128, 128, 128, 0, 128,
                                                    128, 128, 128, 128, 128, 128);
/// Low byte by l.
alignas(32) const uint8_t kLow[32] = MIMO_RT_TWICE(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160,
                                                   176, 192, 208, 224, 240);
/// bf16 of l * 2^-9: high byte, and what the low byte differs in from kLow.
alignas(32) const uint8_t kSmallHigh[32] = MIMO_RT_TWICE(0, 59, 59, 59, 60, 60, 60, 60, 60, 60, 60,
                                                         60, 60, 60, 60, 60);
alignas(32) const uint8_t kSmallLow[32] = MIMO_RT_TWICE(0, 16, 160, 240, 64, 112, 32, 16, 0, 0, 0,
                                                        0, 0, 0, 0, 0);
#undef MIMO_RT_TWICE

MIMO_RT_INLINE __m256i look_up(const uint8_t* table, __m256i idx) {
  return _mm256_shuffle_epi8(*reinterpret_cast<const __m256i*>(table), idx);
}

struct Fp8 : TwoClasses {
  static constexpr int kFormat = layout::kFp8;
  static constexpr uint32_t kVectors = 8;

  template <class Emit>
  MIMO_RT_INLINE void expand(const uint8_t* tile, uint32_t unit, uint32_t block, uint32_t j,
                             const Emit& emit) {
    const __m256i codes = load_codes(tile, block * kVectors + j, unit);
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i h = _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask);
    const __m256i l = _mm256_and_si256(codes, mask);
    const __m256i small = _mm256_or_si256(l, look_up(kSkip, h));
    const __m256i high = _mm256_or_si256(look_up(kHigh, h), look_up(kSmallHigh, small));
    const __m256i low = _mm256_xor_si256(look_up(kLow, l), look_up(kSmallLow, small));
    emit_bytes(low, high, j * 2, emit);
  }

  MIMO_RT_INLINE void scales(const uint8_t* tile, uint32_t num_blocks, uint32_t unit, uint32_t,
                             __m256& scale0, __m256& scale1) {
    const uint8_t* rows = tile + num_blocks * layout::block_bytes(kFormat) + unit * 32;
    const __m256 scale = _mm256_load_ps(reinterpret_cast<const float*>(rows));
    scale0 = _mm256_unpacklo_ps(scale, scale);
    scale1 = _mm256_unpackhi_ps(scale, scale);
  }
};

}  // namespace

void gemm_fp8(const GemmArgs& args) { gemm_format<Fp8>(args); }

}  // namespace mimo_rt::cpu::avx2
