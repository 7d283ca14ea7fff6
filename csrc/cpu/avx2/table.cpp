// The AVX2 kernels as tables. Needs AVX2 and FMA.
#include "entries.h"

#include "../shared/table.h"

namespace mimo_rt::cpu {
namespace {

constexpr Kernels kTable = avx2::make_table("avx2");
constexpr Kernels kInt8Table = avx2::make_int8_table("avx2");

}  // namespace

const Kernels* kernels_avx2() { return &kTable; }
const Kernels* kernels_avx2_int8() { return &kInt8Table; }

}  // namespace mimo_rt::cpu
