// The AVX2 kernels as a table. Needs AVX2 and FMA.
#include "entries.h"

#include "../shared/table.h"

namespace mimo_rt::cpu {
namespace {

constexpr Kernels kTable = avx2::make_table("avx2");

}  // namespace

const Kernels* kernels_avx2() { return &kTable; }

}  // namespace mimo_rt::cpu
