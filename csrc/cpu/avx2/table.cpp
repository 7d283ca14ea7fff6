// The AVX2 kernels as a table. Needs AVX2 and FMA.
#include "../tile_layout.h"
#include "entries.h"

namespace mimo_rt::cpu {
namespace avx2 {
namespace {

void gemm(int format, const GemmArgs& args) {
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

const Kernels kTable = {"avx2", prepared_bytes, prepare,  gemm,         attend_scratch_floats,
                        attend, rms_norm,       silu_mul, add_residual, axpy};

}  // namespace
}  // namespace avx2

const Kernels* kernels_avx2() { return &avx2::kTable; }

}  // namespace mimo_rt::cpu
