// Finds the subject of a case and hands calls on to it.
#include <mimo_rt/device.h>
#include <mimo_rt/kernel_bench.h>

#include <utility>

#include "cpu/dispatch.h"
#include "kbench/cpu_subjects.h"
#include "kbench/cuda_subjects.h"

namespace mimo_rt {

using namespace kbench;

struct KernelBench::Impl {
  std::string backend, device;
  std::unique_ptr<Subject> subject;
};

namespace {

std::unique_ptr<Subject> make_cpu_subject(const KernelCase& c, const KernelBenchOptions& options,
                                          const std::string& backend) {
  const bool is_int8 = options.activations == "int8";
  const cpu::Kernels& kernels =
      cpu::select_kernels(backend, is_int8 ? Activations::int8 : Activations::bf16);
  if (c.kernel == "gemm") return make_cpu_gemm(c, options, kernels);
  MIMO_RT_CHECK(!options.is_hot, invalid_argument, kWhere, "is_hot: expected gemm, got '", c.kernel,
                "'");
  if (c.kernel == "attention") return make_cpu_attention(c, options, kernels);
  if (c.kernel == "edge_counter" || c.kernel == "edge_gather") return make_cpu_edges(c);
  fail(ErrorCode::unavailable, kWhere,
       "kernel: expected gemm, attention, edge_counter or edge_gather on '", backend, "', got '",
       c.kernel, "'");
}

struct CudaKernel {
  const char* name;
  std::unique_ptr<Subject> (*make)(const KernelCase&, const KernelBenchOptions&,
                                   std::unique_ptr<cuda::BenchDevice>);
};
constexpr CudaKernel kCudaKernels[] = {
    {"gemm", make_cuda_gemm},
    {"gemm_normed", make_cuda_gemm},
    {"gemm_gate_up", make_cuda_gemm},
    {"gemm_residual", make_cuda_gemm},
    {"gemm_qkv", make_cuda_qkv},
    {"gemm_best", make_cuda_best},
    {"rms_norm", make_cuda_norm},
    {"expert_gate_up", make_cuda_experts},
    {"expert_down", make_cuda_experts},
    {"expert_gate_up_fp8", make_cuda_experts},
    {"expert_down_fp8", make_cuda_experts},
    {"expert_gate_up_gemm", make_cuda_experts},
    {"expert_down_gemm", make_cuda_experts},
    {"expert_gate_up_mxfp8", make_cuda_experts},
    {"expert_down_mxfp8", make_cuda_experts},
    {"attention", make_cuda_attention},
    {"attention_draft", make_cuda_attention},
    {"route", make_cuda_route},
    {"router_logits", make_cuda_router_logits},
    {"select_experts", make_cuda_select_experts},
    {"sample_best", make_cuda_sampling},
    {"sample", make_cuda_sampling},
    {"sample_filtered", make_cuda_sampling},
    {"sample_verify", make_cuda_sampling},
    {"edge_same_worker", make_cuda_edges},
    {"edge_tag", make_cuda_edges},
    {"edge_counter", make_cuda_edges},
    {"edge_gather", make_cuda_edges},
};

std::unique_ptr<Subject> make_cuda_subject(const KernelCase& c, const KernelBenchOptions& options,
                                           std::unique_ptr<cuda::BenchDevice> device) {
  MIMO_RT_CHECK(!options.is_hot, invalid_argument, kWhere,
                "is_hot: expected a CPU backend, got 'cuda'");
  std::string names;
  for (const CudaKernel& kernel : kCudaKernels) {
    if (c.kernel == kernel.name) return kernel.make(c, options, std::move(device));
    names += concat(names.empty() ? "" : ", ", kernel.name);
  }
  fail(ErrorCode::unavailable, kWhere, "kernel: expected one of ", names, " on 'cuda', got '",
       c.kernel, "'");
}

}  // namespace

KernelBench KernelBench::open(const KernelCase& kernel_case, const KernelBenchOptions& options) {
  const std::string& activations = options.activations;
  MIMO_RT_CHECK(activations == "bf16" || activations == "int8", invalid_argument, kWhere,
                "activations: expected bf16 or int8, got '", activations, "'");
  MIMO_RT_CHECK(activations == "bf16" || (options.backend != "cuda" && kernel_case.kernel == "gemm" &&
                                          kernel_case.format == "mxfp4"),
                invalid_argument, kWhere, "activations: expected bf16 for anything but gemm of mxfp4 on "
                "a CPU backend, got int8");
  auto impl = std::make_unique<Impl>();
  if (options.backend == "cuda") {  // its kernels run alone, without an engine
    std::unique_ptr<cuda::BenchDevice> device = cuda::open_bench_device();
    impl->backend = "cuda";
    impl->device = device->name();
    impl->subject = make_cuda_subject(kernel_case, options, std::move(device));
  } else {
    impl->backend = resolve_backend(options.backend);
    impl->subject = make_cpu_subject(kernel_case, options, impl->backend);
  }
  return KernelBench(std::move(impl));
}

KernelBench::KernelBench(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
KernelBench::KernelBench(KernelBench&&) noexcept = default;
KernelBench::~KernelBench() = default;

const KernelCase& KernelBench::measured() const noexcept { return impl_->subject->measured(); }
const KernelWork& KernelBench::work() const noexcept { return impl_->subject->work(); }
const std::string& KernelBench::backend() const noexcept { return impl_->backend; }
const std::string& KernelBench::device() const noexcept { return impl_->device; }
double KernelBench::worst_error() { return impl_->subject->worst_error(); }
double KernelBench::relative_error() const noexcept { return impl_->subject->relative_error(); }
KernelTimes KernelBench::run(uint32_t num_calls) { return impl_->subject->run(num_calls); }
std::optional<VectorPeak> KernelBench::measure_peak() { return impl_->subject->measure_peak(); }

}  // namespace mimo_rt
