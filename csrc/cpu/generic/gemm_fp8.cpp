// FP8 E4M3 weights by a table of all 256 codes.
#include "entries.h"
#include "gemm.h"

namespace mimo_rt::cpu::generic {
namespace {

struct Table {
  float value[256];
};

static constexpr Table make_table() {
  Table table = {};
  for (uint32_t code = 0; code < 256; ++code) {
    const uint32_t exponent = (code >> 3) & 15u, mantissa = code & 7u;
    float value = static_cast<float>(exponent == 0 ? mantissa : 8u + mantissa) / 512.0f;
    for (uint32_t e = 1; e < exponent; ++e) value *= 2.0f;
    table.value[code] = (code & 0x80u) ? -value : value;
  }
  return table;
}

constexpr Table kE4m3 = make_table();

struct Fp8 {
  static constexpr int kFormat = layout::kFp8;

  static void expand(const uint8_t* block, float* weights) {
    for (uint32_t j = 0; j < 8; ++j)
      for (uint32_t row = 0; row < layout::kRows; ++row)
        for (uint32_t b = 0; b < 4; ++b)
          weights[(j * 4 + b) * layout::kRows + row] = kE4m3.value[block[j * 64 + row * 4 + b]];
  }

  static void scales(const uint8_t* rows, uint32_t, float* scale) {
    for (uint32_t row = 0; row < layout::kRows; ++row) scale[row] = load_f32(rows + row * 4);
  }
};

}  // namespace

void gemm_fp8(const GemmArgs& args) { gemm_format<Fp8>(args); }

}  // namespace mimo_rt::cpu::generic
