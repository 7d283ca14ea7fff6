#include "kbench/cuda_costs.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "cuda/step_params.h"
#include "kbench/cost_samples.h"
#include "kbench/cuda_subjects.h"
#include "kbench/random_rows.h"

namespace mimo_rt::kbench {
namespace {

class CudaCostMeter {
 public:
  CudaCostMeter(const OpenDevice& open_device, const CudaCostSizes& sizes, uint32_t num_workers)
      : open_device_(open_device), sizes_(sizes), num_workers_(num_workers) {
    options_.backend = "cuda";
    options_.rotation_bytes = 1;  // one copy: the plain read between the calls empties the cache
  }

  CostTable measure(const std::function<void(double)>& progress) {
    CostTable table;
    double step = 0.0;
    const auto tell = [&] {
      if (progress) progress(step++ / (CostTable::kFormats.size() * CostTable::kTokens.size() + 2.0));
    };
    launch_ns_ = norm_call_ns(1, kBlockK);
    for (size_t f = 0; f < CostTable::kFormats.size(); ++f)
      for (size_t i = 0; i < CostTable::kTokens.size(); ++i) {
        const double fewer_ns = i ? table.matrix_ns[f][i - 1] : 0.0;
        tell();
        // A disturbed sample must not make more tokens look cheaper.
        table.matrix_ns[f][i] = std::max(matrix_ns(CostTable::kFormats[f], CostTable::kTokens[i]), fewer_ns);
      }
    tell();
    table.attention_ns = attention_ns();
    table.norm_ns = without_launch(norm_call_ns(num_workers_, sizes_.k)) * 1024 / sizes_.k;
    tell();
    measure_edges(table, num_workers_, [&](uint32_t num_signallers) { return edge_ns(num_signallers); });
    if (progress) progress(1.0);
    return table;
  }

 private:
  static_assert(CostTable::kTokens.back() == cuda::kMaxStepTokens);

  /// What tasks of the resident kernel do not pay for.
  double without_launch(double call_ns) const { return std::max(call_ns - launch_ns_, 0.0); }

  static double call_ns(KernelTimes times) {
    times.call_s.erase(times.call_s.begin());
    return 1e9 * typical(std::move(times.call_s));
  }

  using Make = std::unique_ptr<Subject> (*)(const KernelCase&, const KernelBenchOptions&,
                                            std::unique_ptr<cuda::BenchDevice>);
  double call_ns(Make make, const KernelCase& kernel_case) const {
    return call_ns(make(kernel_case, options_, open_device_())->run(1 + kCostCalls));
  }

  /// All workers read and multiply a part of the matrix each.
  double matrix_ns(const std::string& format, uint32_t num_tokens) const {
    KernelCase c{.kernel = "gemm", .format = format, .num_tokens = num_tokens, .rows = sizes_.rows, .k = sizes_.k};
    double weights = double{1} * c.rows * c.k;
    Make make = make_cuda_gemm;
    if (format == "mxfp4") {  // every expert sees all tokens
      c = {.kernel = "expert_gate_up", .format = format, .num_tokens = num_tokens};
      c.num_experts = c.experts_per_token = std::min(sizes_.num_experts, cuda::kMaxExpertSlots / num_tokens);
      c.hidden_size = sizes_.k, c.width = sizes_.expert_width;
      weights = 2.0 * c.num_experts * c.width * c.hidden_size;
      make = make_cuda_experts;
    } else if (format == "f32") {
      c = {.kernel = "router_logits", .format = format, .num_tokens = num_tokens};
      c.num_experts = sizes_.router_experts, c.hidden_size = sizes_.router_k;
      weights = double{1} * c.num_experts * c.hidden_size;
      make = make_cuda_router_logits;
    }
    return without_launch(call_ns(make, c)) * num_workers_ * 1024 / weights;
  }

  /// Every worker goes through the same number of keys for one kv head.
  double attention_ns() const {
    KernelCase c{.kernel = "attention", .format = "bf16"};
    c.num_kv_heads = std::min(num_workers_, 4u);
    c.num_q_per_kv = sizes_.num_q_per_kv;
    c.qk_head_dim = sizes_.qk_head_dim, c.v_head_dim = sizes_.v_head_dim;
    c.split_keys = sizes_.split_keys;
    c.num_keys = sizes_.split_keys * (num_workers_ / c.num_kv_heads);
    const double macs = double{1} * c.split_keys * c.num_q_per_kv * (c.qk_head_dim + c.v_head_dim);
    return without_launch(call_ns(make_cuda_attention, c)) * 1024 / macs;
  }

  /// A call that normalises `num_rows` rows of `k` elements, one per worker.
  double norm_call_ns(uint32_t num_rows, uint32_t k) const {
    const std::unique_ptr<cuda::BenchDevice> device = open_device_();
    const uint64_t num_bytes = uint64_t{num_rows} * k * sizeof(bf16_t);
    auto* x = static_cast<bf16_t*>(device->allocate(num_bytes));
    auto* weight = static_cast<float*>(device->allocate(k * sizeof(float)));
    const std::vector<float> ones(k, 1.0f);
    device->upload(x, random_bf16(uint64_t{num_rows} * k, 1).data(), num_bytes);
    device->upload(weight, ones.data(), k * sizeof(float));
    cuda::RmsNormParams params;
    params.x = {x, k};
    params.weight = weight;
    params.out = {static_cast<bf16_t*>(device->allocate(num_bytes)), k};
    params.eps = 1e-5f;
    params.num_tokens = num_rows;
    params.k = k;
    return call_ns(device->time(1 + kCostCalls, [&](uint32_t) { device->launch(params); }));
  }

  double edge_ns(uint32_t num_signallers) const {
    KernelCase c{.kernel = "edge_gather", .format = "u32"};
    c.num_hops = sizes_.num_hops;
    c.num_signallers = num_signallers;
    return without_launch(call_ns(make_cuda_edges, c)) / sizes_.num_hops;
  }

  const OpenDevice& open_device_;
  const CudaCostSizes& sizes_;
  const uint32_t num_workers_;
  KernelBenchOptions options_;
  double launch_ns_ = 0.0;  ///< of a call with next to nothing to do
};

}  // namespace

CostTable measure_cuda_costs(const CostKey& key, const OpenDevice& open_device, const CudaCostSizes& sizes,
                             const std::function<void(double)>& progress) {
  const auto [num_workers, name] = [&] {
    const std::unique_ptr<cuda::BenchDevice> device = open_device();
    return std::pair{device->num_multiprocessors(), device->name()};
  }();
  MIMO_RT_CHECK(key.activations == "bf16", unavailable, "measure_costs",
                "activations: expected bf16 on 'cuda', got ", key.activations);
  MIMO_RT_CHECK(key.processor == name, invalid_argument, "measure_costs", "processor: expected '", name,
                "', the GPU that would be measured, got '", key.processor, "'. cost_key(\"cuda\") fills it in.");
  MIMO_RT_CHECK(key.num_workers == num_workers, invalid_argument, "measure_costs", "num_workers: expected ",
                num_workers, ", all multiprocessors: the kernels run on all of them, got ", key.num_workers);
  const CostTable table = CudaCostMeter(open_device, sizes, num_workers).measure(progress);
  MIMO_RT_CHECK(table.is_measured() && table.is_sound(), device_lost, "measure_costs",
                "the device's clock: expected times above 0, got none for an MXFP4 matrix");
  return table;
}

}  // namespace mimo_rt::kbench
