// BF16 and FP32 weights.
#include "entries.h"
#include "gemm.h"

namespace mimo_rt::cpu::generic {
namespace {

struct Unscaled {
  static void scales(const uint8_t*, uint32_t, float* scale) {
    for (uint32_t row = 0; row < layout::kRows; ++row) scale[row] = 1.0f;
  }
};

struct Bf16 : Unscaled {
  static constexpr int kFormat = layout::kBf16;

  static void expand(const uint8_t* block, float* weights) {
    for (uint32_t j = 0; j < 16; ++j)
      for (uint32_t row = 0; row < layout::kRows; ++row) {
        const uint32_t pair = load_u32(block + j * 64 + row * 4);
        weights[(j * 2) * layout::kRows + row] = bits_to_f32(pair << 16);
        weights[(j * 2 + 1) * layout::kRows + row] = bits_to_f32(pair & 0xffff0000u);
      }
  }
};

struct F32 : Unscaled {
  static constexpr int kFormat = layout::kF32;

  static void expand(const uint8_t* block, float* weights) {
    for (uint32_t i = 0; i < layout::kBlockK * layout::kRows; ++i)
      weights[i] = load_f32(block + i * 4);
  }
};

}  // namespace

void gemm_bf16(const GemmArgs& args) { gemm_format<Bf16>(args); }
void gemm_f32(const GemmArgs& args) { gemm_format<F32>(args); }

}  // namespace mimo_rt::cpu::generic
