// What the products of this folder multiply with, in registers alone.
#include "entries.h"
#include "gemm.h"

#include "../shared/peak.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

enum : uint32_t { kPeakChains = 16 };  // two units, up to six cycles

}  // namespace

uint64_t run_products(uint64_t num_rounds) {
  const __m512i ones = _mm512_set1_epi32(0x3f803f80);
  run_chains<kPeakChains>(num_rounds, _mm512_setzero_ps(),
                          [&](__m512 sum) { return Pairs::multiply_add(sum, ones, ones); });
  return num_rounds * kPeakChains * 16 * 2 * (2 / Pairs::kStepsPerPair);
}

}  // namespace mimo_rt::cpu::MIMO_RT_ISA
