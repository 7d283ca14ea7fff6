// What the products of this folder multiply with, in registers alone.
#include "entries.h"
#include "gemm.h"

#include "../shared/peak.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

enum : uint32_t { kPeakChains = 16 };  // two units, up to six cycles

}  // namespace

uint64_t run_products(int format, uint64_t num_rounds) {
  if (format == layout::kF32) {
    const __m512 ones = _mm512_set1_ps(1.0f);
    run_chains<kPeakChains>(num_rounds, _mm512_setzero_ps(),
                            [&](__m512 sum) { return _mm512_fmadd_ps(ones, ones, sum); });
    return num_rounds * kPeakChains * 16 * 2;
  }
  const __m512i ones = _mm512_set1_epi32(0x3f803f80);
  run_chains<kPeakChains>(num_rounds, _mm512_setzero_ps(),
                          [&](__m512 sum) { return Pairs::multiply_add(sum, ones, ones); });
  return num_rounds * kPeakChains * 16 * 2 * (2 / Pairs::kStepsPerPair);
}

const char* product_source(int format) {
  return format == layout::kF32 || Pairs::kStepsPerPair == 2 ? "FP32 FMA" : "vdpbf16ps";
}

uint64_t run_int8_products(uint64_t num_rounds) {
  __m512i ones = _mm512_set1_epi8(1);
  run_chains<kPeakChains>(num_rounds, _mm512_setzero_si512(), [&](__m512i sum) {
#if defined(MIMO_RT_AVX512_BF16)
    return _mm512_dpbusd_epi32(sum, ones, ones);
#else
    asm volatile("" : "+v"(ones));  // every product is computed
    return _mm512_add_epi16(sum, _mm512_maddubs_epi16(ones, ones));
#endif
  });
  return num_rounds * kPeakChains * 64 * 2;
}

const char* int8_product_source() {
#if defined(MIMO_RT_AVX512_BF16)
  return "vpdpbusd";
#else
  return "vpmaddubsw, vpaddw";
#endif
}

}  // namespace mimo_rt::cpu::MIMO_RT_ISA
