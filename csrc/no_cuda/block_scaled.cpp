// Stands in for csrc/cuda/gemm/block_scaled_sm100.cu when the CUDA part is built without CUTLASS.
#include "cuda/gemm/block_scaled.h"

#include "core/checks.h"

namespace mimo_rt::cuda {

void check_block_scaled(const char* where) {
  fail(ErrorCode::unavailable, where,
       "expected a build with CUTLASS, got one without. Build with MIMO_RT_CUTLASS=ON.");
}

void launch_block_scaled_gemm(const BlockScaledGemm& /*gemm*/, const LaunchOptions& /*options*/,
                              const char* where, const std::string& /*shapes*/) {
  check_block_scaled(where);
}

}  // namespace mimo_rt::cuda
