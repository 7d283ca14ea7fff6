// MXFP4 weights: E2M1 codes looked up as the two bytes of a bf16, which is exact, and widened to
// FP32.
#include "entries.h"
#include "two_classes.h"

namespace mimo_rt::cpu::avx2 {
namespace {

// bf16 of 0 .5 1 1.5 2 3 4 6 and their negatives: high bytes, low bytes; twice, for the two halves
// of a register.
alignas(32) const uint8_t kHighBytes[32] = {
    0x00, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x80, 0xbf, 0xbf, 0xbf, 0xc0, 0xc0, 0xc0, 0xc0,
    0x00, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x80, 0xbf, 0xbf, 0xbf, 0xc0, 0xc0, 0xc0, 0xc0};
alignas(32) const uint8_t kLowBytes[32] = {
    0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0, 0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0,
    0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0, 0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0};

struct Mxfp4 : TwoClasses {
  static constexpr int kFormat = layout::kMxfp4;
  static constexpr uint32_t kVectors = 4;

  template <class Emit>
  MIMO_RT_INLINE void nibbles(__m256i code, uint32_t step, const Emit& emit) {
    const __m256i high = _mm256_shuffle_epi8(*reinterpret_cast<const __m256i*>(kHighBytes), code);
    const __m256i low = _mm256_shuffle_epi8(*reinterpret_cast<const __m256i*>(kLowBytes), code);
    emit_bytes(low, high, step, emit);
  }

  template <class Emit>
  MIMO_RT_INLINE void expand(const uint8_t* tile, uint32_t unit, uint32_t block, uint32_t j,
                             const Emit& emit) {
    const __m256i codes = load_codes(tile, block * kVectors + j, unit);
    const __m256i mask = _mm256_set1_epi8(15);
    nibbles(_mm256_and_si256(codes, mask), j * 4, emit);
    nibbles(_mm256_and_si256(_mm256_srli_epi16(codes, 4), mask), j * 4 + 2, emit);
  }

  MIMO_RT_INLINE void scales(const uint8_t* tile, uint32_t num_blocks, uint32_t unit,
                             uint32_t block, __m256& scale0, __m256& scale1) {
    const uint8_t* e8m0 = tile + num_blocks * layout::block_bytes(kFormat) + block * 16 + unit * 8;
    const __m256i exponent =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(e8m0)));
    // Byte 0 means 2^-127, the subnormal 0x00400000.
    const __m256i bits =
        _mm256_max_epi32(_mm256_slli_epi32(exponent, 23), _mm256_set1_epi32(0x00400000));
    const __m256 scale = _mm256_castsi256_ps(bits);
    scale0 = _mm256_unpacklo_ps(scale, scale);
    scale1 = _mm256_unpackhi_ps(scale, scale);
  }
};

}  // namespace

void gemm_mxfp4(const GemmArgs& args) { gemm_format<Mxfp4>(args); }

}  // namespace mimo_rt::cpu::avx2
