// Measures a cost table on a CPU: every worker of a pool runs the same kernel on memory of its own.
#include <mimo_rt/costs.h>
#include <mimo_rt/device.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <mutex>
#include <numeric>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/worker_pool.h"
#include "kbench/cost_samples.h"
#include "kbench/counter_relay.h"
#include "kbench/cpu_subjects.h"
#include "kbench/cuda_costs.h"
#include "kbench/random_rows.h"
#include "weights/arena.h"

namespace mimo_rt {
namespace {

using namespace kbench;

constexpr uint32_t kRows = 4096, kColumns = 2048;
constexpr uint64_t kLeastRotation = uint64_t{8} << 20;
constexpr uint32_t kNumEdges = 8192;  // more than workers, of which a plan has at most 4096

double now_ns() {
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Runs `body(worker)` on all workers at once; its first exception is thrown afterwards.
template <typename Body>
class OnAll final : public cpu::WorkerPool::Job {
 public:
  explicit OnAll(const Body& body) : body_(body) {}
  void work(uint32_t worker) noexcept override {
    try {
      body_(worker);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
  void run(cpu::WorkerPool& pool) {
    pool.run(*this);
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const Body& body_;
  std::mutex mutex_;
  std::exception_ptr error_;
};

class CostMeter {
 public:
  explicit CostMeter(const CostKey& key)
      : kernels_(cpu::select_kernels(key.backend,
                                     key.activations == "int8" ? Activations::int8 : Activations::bf16)),
        pool_({.num_workers = key.num_workers ? key.num_workers : num_usable_cores()}),
        ns_(pool_.num_workers()) {
    options_.backend = key.backend;
    options_.activations = key.activations;
    options_.rotation_bytes = std::max(rotation_bytes(options_) / pool_.num_workers(), kLeastRotation);
  }

  CostTable measure(const std::function<void(double)>& progress) {
    CostTable table;
    const double num_steps = CostTable::kFormats.size() * CostTable::kTokens.size() + 3.0;
    double step = 0.0;
    const auto tell = [&] {
      if (progress) progress(step++ / num_steps);
    };
    for (size_t f = 0; f < CostTable::kFormats.size(); ++f)
      for (size_t i = 0; i < CostTable::kTokens.size(); ++i) {
        tell();
        // A disturbed sample must not make more tokens look cheaper.
        const double fewer_ns = i ? table.matrix_ns[f][i - 1] : 0.0;
        table.matrix_ns[f][i] = std::max(matrix_ns(CostTable::kFormats[f], CostTable::kTokens[i]), fewer_ns);
      }
    tell();
    table.attention_ns = attention_ns();
    tell();
    table.norm_ns = norm_ns();
    table.prepare_ns = prepare_ns();
    tell();
    measure_edges(table, pool_.num_workers(), [&](uint32_t num_signallers) { return edge_ns(num_signallers); });
    if (progress) progress(1.0);
    return table;
  }

 private:
  template <typename Make>
  double call_ns(const Make& make) {
    const auto body = [&](uint32_t worker) {
      const std::unique_ptr<Subject> subject = make();
      KernelTimes times = subject->run(1 + kCostCalls);
      times.call_s.erase(times.call_s.begin());
      ns_[worker] = 1e9 * typical(std::move(times.call_s)) / units_of(*subject);
    };
    OnAll(body).run(pool_);
    return mean();
  }

  /// Thousands of weights, or of multiply-adds.
  static double units_of(const Subject& subject) {
    const KernelCase& c = subject.measured();
    return c.kernel == "gemm" ? 1.0 * c.rows * c.k / 1024 : subject.work().flops / 2 / 1024;
  }

  double matrix_ns(const char* format, uint32_t num_tokens) {
    KernelCase c{.kernel = "gemm", .format = format, .num_tokens = num_tokens, .rows = kRows, .k = kColumns};
    KernelBenchOptions options = options_;
    if (c.format != "mxfp4") options.activations = "bf16";
    return call_ns([&] { return make_cpu_gemm(c, options, kernels_); });
  }

  double attention_ns() {
    KernelCase c{.kernel = "attention", .format = "bf16", .num_kv_heads = 8, .num_q_per_kv = 8, .qk_head_dim = 192,
                 .v_head_dim = 128, .num_keys = 1024};
    return call_ns([&] { return make_cpu_attention(c, options_, kernels_); });
  }

  /// ns of one of many calls, the data in the caches.
  template <typename Call>
  double hot_ns(const Call& call) {
    constexpr uint32_t kRepeats = 200;
    const auto body = [&](uint32_t worker) {
      std::vector<double> samples;
      for (uint32_t i = 0; i < kCostCalls; ++i) {
        const double begin = now_ns();
        for (uint32_t r = 0; r < kRepeats; ++r) call(worker);
        samples.push_back((now_ns() - begin) / kRepeats);
      }
      ns_[worker] = typical(std::move(samples));
    };
    OnAll(body).run(pool_);
    return mean();
  }

  double norm_ns() {
    const std::vector<cpu::bf16_t> x = random_bf16(kColumns, 1);
    const std::vector<float> weight(kColumns, 1.0f);
    std::vector<std::vector<cpu::bf16_t>> y(pool_.num_workers(), std::vector<cpu::bf16_t>(kColumns));
    return hot_ns([&](uint32_t worker) {
             kernels_.rms_norm(x.data(), weight.data(), 1e-5f, kColumns, y[worker].data());
           }) *
           1024 / kColumns;
  }

  double prepare_ns() {
    constexpr int kFormat = static_cast<int>(PackedFormat::mxfp4);
    const std::vector<cpu::bf16_t> x = random_bf16(kColumns, 1);
    std::vector<Arena> prepared;
    for (uint32_t w = 0; w < pool_.num_workers(); ++w)
      prepared.emplace_back(kernels_.prepared_bytes(kFormat, 1, kColumns), kWhere);
    return hot_ns([&](uint32_t worker) {
             kernels_.prepare(kFormat,
                              {x.data(), kColumns, nullptr, 1, kColumns, kColumns, prepared[worker].data()});
           }) *
           1024 / kColumns;
  }

  /// Some workers signal, then all wait for them, again and again.
  double edge_ns(uint32_t num_signallers) {
    CounterRelay relay(pool_, {kNumEdges, num_signallers, true});
    std::vector<double> samples;
    for (uint32_t i = 0; i < kCostCalls; ++i) samples.push_back(relay.run());
    return typical(std::move(samples));
  }

  double mean() const { return std::accumulate(ns_.begin(), ns_.end(), 0.0) / static_cast<double>(ns_.size()); }

  const cpu::Kernels& kernels_;
  KernelBenchOptions options_;
  cpu::WorkerPool pool_;
  std::vector<double> ns_;  ///< [worker] of the last measurement
};

}  // namespace

CostTable measure_costs(const CostKey& key, const std::function<void(double)>& progress) {
  if (key.backend == "cuda") return measure_cuda_costs(key, cuda::open_bench_device, {}, progress);
  MIMO_RT_CHECK(key.backend.starts_with("cpu-"), unavailable, "measure_costs",
                "backend: expected 'cuda' or a CPU backend of list_backends, got '", key.backend, "'");
  MIMO_RT_CHECK(key.activations == "bf16" || key.activations == "int8", invalid_argument, "measure_costs",
                "activations: expected bf16 or int8, got '", key.activations, "'");
  return CostMeter(key).measure(progress);
}

}  // namespace mimo_rt
