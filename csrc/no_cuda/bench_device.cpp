// Stands in for csrc/cuda/bench_device.cu when the library is built without CUDA.
#include "cuda/bench_device.h"

#include "core/checks.h"

namespace mimo_rt::cuda {

std::unique_ptr<BenchDevice> open_bench_device() {
  fail(ErrorCode::unavailable, "KernelBench.open",
       "backend 'cuda': expected a build with CUDA, got one without. Build with MIMO_RT_CUDA=ON.");
}

}  // namespace mimo_rt::cuda
