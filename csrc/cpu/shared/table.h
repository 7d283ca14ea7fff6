// The kernels of an ISA folder as a table.
#pragma once

#include "../tile_layout.h"
#include "entries.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

static void gemm(int format, const GemmArgs& args) {
  switch (format) {
    case layout::kMxfp4:
      return gemm_mxfp4(args);
    case layout::kFp8:
      return gemm_fp8(args);
    case layout::kBf16:
      return gemm_bf16(args);
    default:
      return gemm_f32(args);
  }
}

static constexpr Kernels make_table(const char* name) {
  return {name,   prepared_bytes, prepare,  gemm,         attend_scratch_floats,
          attend, rms_norm,       silu_mul, add_residual, axpy};
}

}  // namespace
}  // namespace mimo_rt::cpu::MIMO_RT_ISA
