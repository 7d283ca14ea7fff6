// MXFP4 weights: E2M1 codes by table, E8M0 scales by exponent bits.
#include "entries.h"
#include "gemm.h"

namespace mimo_rt::cpu::generic {
namespace {

const float kE2m1[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                         -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

struct Mxfp4 {
  static constexpr int kFormat = layout::kMxfp4;

  static void expand(const uint8_t* block, float* weights) {
    for (uint32_t j = 0; j < 4; ++j)
      for (uint32_t row = 0; row < layout::kRows; ++row)
        for (uint32_t b = 0; b < 4; ++b) {
          const uint32_t code = block[j * 64 + row * 4 + b];
          weights[(j * 8 + b) * layout::kRows + row] = kE2m1[code & 15u];
          weights[(j * 8 + 4 + b) * layout::kRows + row] = kE2m1[code >> 4];
        }
  }

  static void scales(const uint8_t* e8m0, uint32_t block, float* scale) {
    for (uint32_t row = 0; row < layout::kRows; ++row) {
      const uint32_t exponent = e8m0[block * layout::kRows + row];
      // Byte 0 means 2^-127, the subnormal 0x00400000.
      scale[row] = bits_to_f32(exponent == 0 ? 0x00400000u : exponent << 23);
    }
  }
};

}  // namespace

void gemm_mxfp4(const GemmArgs& args) { gemm_format<Mxfp4>(args); }

}  // namespace mimo_rt::cpu::generic
