// BF16 weights, pairs straight from memory, and FP32 weights.
#include "entries.h"
#include "gemm.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

struct Unscaled {
  static constexpr uint32_t kClasses = 1, kWide = 1, kChains = 1;

  // fma(sum, 1, acc) is acc + sum.
  MIMO_RT_INLINE void scales(const uint8_t*, uint32_t, __m512* scale) {
    scale[0] = _mm512_set1_ps(1.0f);
  }

  MIMO_RT_INLINE void finish(const float* acc, float* y) {
    _mm512_storeu_ps(y, _mm512_load_ps(acc));
  }
};

struct Bf16 : Unscaled, Pairs {
  static constexpr int kFormat = layout::kBf16;
  static constexpr uint32_t kVectors = 16, kSteps = 16 * kStepsPerPair;

  template <class Emit>
  MIMO_RT_INLINE void expand(const uint8_t* codes, uint32_t j, const Emit& emit) {
    emit_pair(emit, j, _mm512_load_si512(codes));
  }
};

struct F32 : Unscaled, Codes {
  static constexpr int kFormat = layout::kF32;
  static constexpr uint32_t kVectors = 32, kSteps = 32;

  template <class Emit>
  MIMO_RT_INLINE void expand(const uint8_t* codes, uint32_t j, const Emit& emit) {
    emit(j, _mm512_load_si512(codes));
  }

  MIMO_RT_INLINE __m512 multiply_add(__m512 acc, __m512i w, __m512i x) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), acc);
  }
};

}  // namespace

void gemm_bf16(const GemmArgs& args) { gemm_format<Bf16>(args); }
void gemm_f32(const GemmArgs& args) { gemm_format<F32>(args); }

}  // namespace mimo_rt::cpu::MIMO_RT_ISA
