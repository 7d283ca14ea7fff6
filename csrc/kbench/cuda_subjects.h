// The CUDA kernels as subjects of a benchmark.
#pragma once

#include "cuda/bench_device.h"
#include "kbench/subject.h"

namespace mimo_rt::kbench {

/// expert_gate_up or expert_down of one MoE layer, for few tokens, for many (…_gemm), with FP8
/// activations (…_fp8) or for many with MXFP8 activations (…_mxfp8); every call activates others.
/// @throws Error{invalid_argument, unsupported_shape, capacity, out_of_memory, unavailable}
std::unique_ptr<Subject> make_cuda_experts(const KernelCase& kernel_case,
                                           const KernelBenchOptions& options,
                                           std::unique_ptr<cuda::BenchDevice> device);

/// A projection, FP8 or BF16: plain, with a fused norm (gemm_normed), as a gated MLP (gemm_gate_up) or
/// added to rows (gemm_residual); that of q, k and v (gemm_qkv: rows follow from the heads); logits
/// and the best token of each row of up to kMaxScoredTokens (gemm_best).
/// @throws Error{invalid_argument, unsupported_shape, capacity, out_of_memory}
std::unique_ptr<Subject> make_cuda_gemm(const KernelCase& kernel_case,
                                        const KernelBenchOptions& options,
                                        std::unique_ptr<cuda::BenchDevice> device);
std::unique_ptr<Subject> make_cuda_qkv(const KernelCase& kernel_case,
                                       const KernelBenchOptions& options,
                                       std::unique_ptr<cuda::BenchDevice> device);
std::unique_ptr<Subject> make_cuda_best(const KernelCase& kernel_case,
                                        const KernelBenchOptions& options,
                                        std::unique_ptr<cuda::BenchDevice> device);

/// A norm on its own.
/// @throws Error{invalid_argument, unsupported_shape, capacity, out_of_memory}
std::unique_ptr<Subject> make_cuda_norm(const KernelCase& kernel_case,
                                        const KernelBenchOptions& options,
                                        std::unique_ptr<cuda::BenchDevice> device);

/// Attention of a few tokens, causal or of a draft's block, over a ring or over pages.
/// @throws Error{invalid_argument, unsupported_shape, capacity, out_of_memory}
std::unique_ptr<Subject> make_cuda_attention(const KernelCase& kernel_case,
                                             const KernelBenchOptions& options,
                                             std::unique_ptr<cuda::BenchDevice> device);

/// The router's matrix; the choice of the experts from its logits; and both.
/// @throws Error{invalid_argument, unsupported_shape, capacity, out_of_memory}
std::unique_ptr<Subject> make_cuda_router_logits(const KernelCase& kernel_case,
                                                 const KernelBenchOptions& options,
                                                 std::unique_ptr<cuda::BenchDevice> device);
std::unique_ptr<Subject> make_cuda_select_experts(const KernelCase& kernel_case,
                                                  const KernelBenchOptions& options,
                                                  std::unique_ptr<cuda::BenchDevice> device);
std::unique_ptr<Subject> make_cuda_route(const KernelCase& kernel_case,
                                         const KernelBenchOptions& options,
                                         std::unique_ptr<cuda::BenchDevice> device);

/// sample_best, sample or sample_filtered: tokens from rows of logits, without a draft; sample_verify:
/// with drawn drafts, and how many of them stay.
/// @throws Error{invalid_argument, capacity, out_of_memory}
std::unique_ptr<Subject> make_cuda_sampling(const KernelCase& kernel_case,
                                            const KernelBenchOptions& options,
                                            std::unique_ptr<cuda::BenchDevice> device);

/// edge_same_worker, edge_tag, edge_counter or edge_gather: a token that blocks hand around.
/// @throws Error{invalid_argument, capacity, out_of_memory}
std::unique_ptr<Subject> make_cuda_edges(const KernelCase& kernel_case,
                                         const KernelBenchOptions& options,
                                         std::unique_ptr<cuda::BenchDevice> device);

}  // namespace mimo_rt::kbench
