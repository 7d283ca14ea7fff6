// The portable kernels as tables.
#include "entries.h"

#include "../shared/table.h"

namespace mimo_rt::cpu {
namespace {

constexpr Kernels kTable = generic::make_table("generic");
constexpr Kernels kInt8Table = generic::make_int8_table("generic");

}  // namespace

const Kernels* kernels_generic() { return &kTable; }
const Kernels* kernels_generic_int8() { return &kInt8Table; }

}  // namespace mimo_rt::cpu
