// What the products of this folder multiply with, in registers alone.
#include <immintrin.h>

#include "entries.h"

#include "../shared/peak.h"
#include "../tile_layout.h"

namespace mimo_rt::cpu::avx2 {
namespace {

enum : uint32_t {
  kPeakChains = 12,  // two units, four cycles; 16 registers
  // Of an activation that MXFP4 weights are multiplied with, see mxfp4_units.h. Units take as many
  // operations, at the same rate.
  kDigits = 2,
};

}  // namespace

uint64_t run_products(int format, uint64_t num_rounds) {
  if (format == layout::kMxfp4) return run_int8_products(num_rounds) / kDigits;
  const __m256 ones = _mm256_set1_ps(1.0f);
  run_chains<kPeakChains>(num_rounds, _mm256_setzero_ps(),
                          [&](__m256 sum) { return _mm256_fmadd_ps(ones, ones, sum); });
  return num_rounds * kPeakChains * 8 * 2;
}

const char* product_source(int format) {
  return format == layout::kMxfp4 ? "vpmaddubsw, vpaddw, twice" : "FP32 FMA";
}

uint64_t run_int8_products(uint64_t num_rounds) {
  __m256i ones = _mm256_set1_epi8(1);
  run_chains<kPeakChains>(num_rounds, _mm256_setzero_si256(), [&](__m256i sum) {
    asm volatile("" : "+x"(ones));  // every product is computed
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(ones, ones));
  });
  return num_rounds * kPeakChains * 32 * 2;
}

const char* int8_product_source() { return "vpmaddubsw, vpaddw"; }

}  // namespace mimo_rt::cpu::avx2
