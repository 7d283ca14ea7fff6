// FP8 E4M3 weights: the fields of a code, moved to where FP32 has them, are the weight times 2^-120,
// subnormal codes included. prepare() scales a token's activations up for it, see prepare.cpp.
//
// Multiplying by the FP32 subnormals that stand for codes below 2^-6 costs nothing on Zen; weights
// with block scales have about one such code in ten thousand.
#include "entries.h"
#include "gemm.h"

namespace mimo_rt::cpu::avx2 {
namespace {

struct Fp8 {
  static constexpr int kFormat = layout::kFp8;
  static constexpr uint32_t kVectors = 8;

  /// The 16-bit halves of a row's word are bytes 0 1 and 2 3, byte b has k = b. Shifting them
  /// extends a sign over the four bits that FP32's exponent has more.
  MIMO_RT_INLINE __m256i even_bytes(const uint8_t* codes) {
    const __m256i word = _mm256_load_si256(reinterpret_cast<const __m256i*>(codes));
    return _mm256_srai_epi16(_mm256_slli_epi16(word, 8), 4);
  }
  MIMO_RT_INLINE __m256i odd_bytes(const uint8_t* codes) {
    const __m256i word = _mm256_load_si256(reinterpret_cast<const __m256i*>(codes));
    return _mm256_srai_epi16(word, 4);
  }

  MIMO_RT_INLINE __m256 mask(__m256i fields) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(fields, _mm256_set1_epi32(static_cast<int>(0x87f00000u))));
  }

  template <bool kReloads, class Emit>
  MIMO_RT_INLINE void expand(const uint8_t* vector, const Emit& emit) {
    const __m256i even0 = even_bytes(vector), even1 = even_bytes(vector + 32);
    emit(0, mask(_mm256_slli_epi32(even0, 16)), mask(_mm256_slli_epi32(even1, 16)));
    const __m256i odd0 = odd_bytes(vector), odd1 = odd_bytes(vector + 32);
    emit(1, mask(_mm256_slli_epi32(odd0, 16)), mask(_mm256_slli_epi32(odd1, 16)));
    emit(2, mask(even0), mask(even1));
    if constexpr (kReloads) forget(vector);
    emit(3, mask(odd_bytes(vector)), mask(odd_bytes(vector + 32)));
  }

  MIMO_RT_INLINE void scales(const uint8_t* tile, uint32_t num_blocks, __m256& scale0,
                             __m256& scale1) {
    const float* rows =
        reinterpret_cast<const float*>(tile + num_blocks * layout::block_bytes(kFormat));
    scale0 = _mm256_load_ps(rows);
    scale1 = _mm256_load_ps(rows + 8);
  }
};

}  // namespace

void gemm_fp8(const GemmArgs& args) { gemm_format<Fp8>(args); }

}  // namespace mimo_rt::cpu::avx2
