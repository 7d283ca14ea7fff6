// BF16 and FP32 weights.
#include "entries.h"
#include "gemm.h"

namespace mimo_rt::cpu::avx2 {
namespace {

struct Unscaled {
  // fma(sum, 1, acc) is acc + sum.
  MIMO_RT_INLINE void scales(const uint8_t*, uint32_t, __m256& scale0, __m256& scale1) {
    scale0 = scale1 = _mm256_set1_ps(1.0f);
  }
};

struct Bf16 : Unscaled {
  static constexpr int kFormat = layout::kBf16;
  static constexpr uint32_t kVectors = 16;

  template <bool kReloads, class Emit>
  MIMO_RT_INLINE void expand(const uint8_t* vector, const Emit& emit) {
    emit(0, even_weights(vector), even_weights(vector + 32));
    if constexpr (kReloads) forget(vector);
    emit(1, odd_weights(vector), odd_weights(vector + 32));
  }

  MIMO_RT_INLINE __m256 even_weights(const uint8_t* pairs) {
    const __m256i words = _mm256_load_si256(reinterpret_cast<const __m256i*>(pairs));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  }

  /// Blends with a zero made here, which costs nothing: gcc would keep a mask or a zero for the
  /// whole loop, and a sum out of the registers for it.
  MIMO_RT_INLINE __m256 odd_weights(const uint8_t* pairs) {
    const __m256i words = _mm256_load_si256(reinterpret_cast<const __m256i*>(pairs));
    __m256i zero;
    asm volatile("vpxor %0, %0, %0" : "=x"(zero));
    return _mm256_castsi256_ps(_mm256_blend_epi16(zero, words, 0xaa));
  }
};

struct F32 : Unscaled {
  static constexpr int kFormat = layout::kF32;
  static constexpr uint32_t kVectors = 32;

  template <bool kReloads, class Emit>
  MIMO_RT_INLINE void expand(const uint8_t* vector, const Emit& emit) {
    const float* rows = reinterpret_cast<const float*>(vector);
    emit(0, _mm256_load_ps(rows), _mm256_load_ps(rows + 8));
  }
};

}  // namespace

void gemm_bf16(const GemmArgs& args) { gemm_format<Bf16>(args); }
void gemm_f32(const GemmArgs& args) { gemm_format<F32>(args); }

}  // namespace mimo_rt::cpu::avx2
