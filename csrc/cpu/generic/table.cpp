// The portable kernels as a table.
#include "entries.h"

#include "../shared/table.h"

namespace mimo_rt::cpu {
namespace {

constexpr Kernels kTable = generic::make_table("generic");

}  // namespace

const Kernels* kernels_generic() { return &kTable; }

}  // namespace mimo_rt::cpu
