// The CUDA kernels as subjects of a benchmark.
#pragma once

#include "cuda/bench_device.h"
#include "kbench/subject.h"

namespace mimo_rt::kbench {

/// expert_gate_up or expert_down of one MoE layer; every call activates other experts.
/// @throws Error{invalid_argument, unsupported_shape, capacity, out_of_memory}
std::unique_ptr<Subject> make_cuda_experts(const KernelCase& kernel_case,
                                           const KernelBenchOptions& options,
                                           std::unique_ptr<cuda::BenchDevice> device);

/// A projection, FP8 or BF16, without fused parts.
/// @throws Error{invalid_argument, unsupported_shape, capacity, out_of_memory}
std::unique_ptr<Subject> make_cuda_gemm(const KernelCase& kernel_case,
                                        const KernelBenchOptions& options,
                                        std::unique_ptr<cuda::BenchDevice> device);

}  // namespace mimo_rt::kbench
