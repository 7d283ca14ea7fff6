// The AVX-512 kernels as a table; entries.h says what they need.
#include "entries.h"

#include "../shared/table.h"

namespace mimo_rt::cpu {
namespace {

constexpr Kernels kTable = MIMO_RT_ISA::make_table("avx512");

}  // namespace

#if defined(MIMO_RT_AVX512_BF16)
const Kernels* kernels_avx512_bf16() { return &kTable; }
#else
const Kernels* kernels_avx512() { return &kTable; }
#endif

}  // namespace mimo_rt::cpu
