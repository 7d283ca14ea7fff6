// What the products of this folder multiply with, in registers alone.
#include <immintrin.h>

#include "entries.h"

#include "../shared/peak.h"

namespace mimo_rt::cpu::avx2 {
namespace {

enum : uint32_t { kPeakChains = 12 };  // two units, four cycles; 16 registers

}  // namespace

uint64_t run_products(uint64_t num_rounds) {
  const __m256 ones = _mm256_set1_ps(1.0f);
  run_chains<kPeakChains>(num_rounds, _mm256_setzero_ps(),
                          [&](__m256 sum) { return _mm256_fmadd_ps(ones, ones, sum); });
  return num_rounds * kPeakChains * 8 * 2;
}

}  // namespace mimo_rt::cpu::avx2
