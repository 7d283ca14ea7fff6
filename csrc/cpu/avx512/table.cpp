// The AVX-512 kernels as tables; entries.h says what they need.
#include "entries.h"

#include "../shared/table.h"

namespace mimo_rt::cpu {
namespace {

constexpr Kernels kTable = MIMO_RT_ISA::make_table("avx512");
constexpr Kernels kInt8Table = MIMO_RT_ISA::make_int8_table("avx512");

}  // namespace

#if defined(MIMO_RT_AVX512_BF16)
const Kernels* kernels_avx512_bf16() { return &kTable; }
const Kernels* kernels_avx512_bf16_int8() { return &kInt8Table; }
#else
const Kernels* kernels_avx512() { return &kTable; }
const Kernels* kernels_avx512_int8() { return &kInt8Table; }
#endif

}  // namespace mimo_rt::cpu
