// The AVX-512 kernels as a table; entries.h says what they need.
#include "../tile_layout.h"
#include "entries.h"

namespace mimo_rt::cpu {
namespace MIMO_RT_ISA {
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

const Kernels kTable = {"avx512", prepared_bytes, prepare,  gemm,         attend_scratch_floats,
                        attend,   rms_norm,       silu_mul, add_residual, axpy};

}  // namespace
}  // namespace MIMO_RT_ISA

#if defined(MIMO_RT_AVX512_BF16)
const Kernels* kernels_avx512_bf16() { return &MIMO_RT_ISA::kTable; }
#else
const Kernels* kernels_avx512() { return &MIMO_RT_ISA::kTable; }
#endif

}  // namespace mimo_rt::cpu
