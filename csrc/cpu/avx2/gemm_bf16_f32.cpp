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

  template <class Emit>
  MIMO_RT_INLINE void expand(const uint8_t* vector, uint32_t j, const Emit& emit) {
    const __m256i* pairs = reinterpret_cast<const __m256i*>(vector);
    const __m256i pair0 = _mm256_load_si256(pairs), pair1 = _mm256_load_si256(pairs + 1);
    const __m256i odd = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    emit(j * 2, _mm256_castsi256_ps(_mm256_slli_epi32(pair0, 16)),
         _mm256_castsi256_ps(_mm256_slli_epi32(pair1, 16)));
    emit(j * 2 + 1, _mm256_castsi256_ps(_mm256_and_si256(pair0, odd)),
         _mm256_castsi256_ps(_mm256_and_si256(pair1, odd)));
  }
};

struct F32 : Unscaled {
  static constexpr int kFormat = layout::kF32;
  static constexpr uint32_t kVectors = 32;

  template <class Emit>
  MIMO_RT_INLINE void expand(const uint8_t* vector, uint32_t j, const Emit& emit) {
    const float* rows = reinterpret_cast<const float*>(vector);
    emit(j, _mm256_load_ps(rows), _mm256_load_ps(rows + 8));
  }
};

}  // namespace

void gemm_bf16(const GemmArgs& args) { gemm_format<Bf16>(args); }
void gemm_f32(const GemmArgs& args) { gemm_format<F32>(args); }

}  // namespace mimo_rt::cpu::avx2
