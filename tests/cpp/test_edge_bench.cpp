// The edges of `mimo-rt kbench edges`, and the cost table that takes them: a relay with something
// wrong is not timed; what cannot be measured is refused. The GPU's relay is its own source under
// emulation (test_cuda_edge_relay.cpp).
#include "emulated_bench_device.h"
#include "kbench/counter_relay.h"
#include "kbench/cpu_subjects.h"
#include "kbench/cuda_costs.h"
#include "kbench/cuda_subjects.h"

#include <mimo_rt/device.h>

#include <cmath>

using namespace mimo_rt;
using namespace fixture;

namespace {

constexpr const char* kEdges[] = {"edge_same_worker", "edge_tag", "edge_counter", "edge_gather"};

KernelCase edge(const char* kernel, uint32_t num_workers, uint32_t num_hops = 7) {
  KernelCase c;
  c.kernel = kernel;
  c.format = "u32";
  c.num_workers = num_workers;
  c.num_hops = num_hops;
  return c;
}

std::unique_ptr<kbench::Subject> open_cuda(const KernelCase& c) {
  return kbench::make_cuda_edges(c, {}, std::make_unique<EmulatedBenchDevice>());
}

/// Does something else than it is told.
struct BrokenDevice : EmulatedBenchDevice {
  enum class Fault { one_hop_less, missing_signal } fault;
  explicit BrokenDevice(Fault what) : fault(what) {}
  void launch(const cuda::EdgeRelayParams& params, uint32_t num_blocks) override {
    cuda::EdgeRelayParams changed = params;
    if (fault == Fault::one_hop_less) --changed.num_hops;
    else ++changed.first_hop;
    changed.watchdog.deadline_ns = 300'000;
    EmulatedBenchDevice::launch(changed, num_blocks);
  }
};

}  // namespace

TEST_CASE("CUDA edges pass their check and are timed; of a relay that stops early they do not") {
  for (const char* kernel : kEdges) {
    const auto subject = open_cuda(edge(kernel, 2));
    CHECK_EQ(subject->worst_error(), 0.0);
    CHECK_EQ(subject->run(2).call_s.size(), 2u);
    CHECK_EQ(subject->worst_error(), 0.0);  // goes on where the last call ended
    CHECK_EQ(subject->work().num_hops, 7u);
    CHECK_EQ(subject->measured().num_signallers, kernel == std::string("edge_gather") ? 2u : 1u);
    const auto broken = kbench::make_cuda_edges(
        edge(kernel, 2), {}, std::make_unique<BrokenDevice>(BrokenDevice::Fault::one_hop_less));
    CHECK(std::isinf(broken->worst_error()));
  }
  CHECK_EQ(open_cuda(edge("edge_gather", 0))->measured().num_workers, 3u);  // all of the device
}

TEST_CASE("a signal that does not come is an error that says who waited for what") {
  for (const char* kernel : {"edge_tag", "edge_counter", "edge_gather"}) {
    const auto hung = kbench::make_cuda_edges(
        edge(kernel, 2), {}, std::make_unique<BrokenDevice>(BrokenDevice::Fault::missing_signal));
    CHECK_THROWS(timeout, "waited a second at hop", hung->worst_error());
    CHECK_THROWS(timeout, kernel, hung->run(1));
  }
}

TEST_CASE("a cost table is measured with the kernels themselves") {
  kbench::CudaCostSizes sizes;
  sizes.rows = 96, sizes.k = 96;
  sizes.num_experts = 3, sizes.expert_width = 32;
  sizes.router_experts = 12, sizes.router_k = 64;
  sizes.split_keys = 64, sizes.qk_head_dim = 48, sizes.v_head_dim = 32, sizes.num_q_per_kv = 2;
  sizes.num_hops = 4;
  const auto open = [] { return std::make_unique<EmulatedBenchDevice>(); };
  const CostKey key{.backend = "cuda", .num_workers = 3, .kernel_set = {}, .processor = open()->name()};
  const CostTable table = kbench::measure_cuda_costs(key, open, sizes, {});
  CHECK(table.is_measured() && table.is_sound());
  for (const auto& times : table.matrix_ns) CHECK(times.front() > 0.0 && times.back() > times.front());
  for (const double ns : {table.attention_ns, table.norm_ns, table.edge_ns}) CHECK(std::isfinite(ns) && ns > 0.0);
}

TEST_CASE("counters of a CPU hand the token on; too few workers and hops are refused by name") {
  cpu::WorkerPool pool({.num_workers = 2});
  for (const bool all_wait : {false, true}) {
    kbench::CounterRelay relay(pool, {.num_hops = 50, .num_signallers = all_wait ? 2u : 1u, .all_wait = all_wait});
    CHECK(!relay.is_right());  // control: nothing was handed on yet
    CHECK(relay.run() > 0.0);
    CHECK(relay.is_right());
  }
  if (num_usable_cores() < 2) return;
  for (const char* kernel : {"edge_counter", "edge_gather"}) {
    const auto subject = kbench::make_cpu_edges(edge(kernel, 2, 30));
    CHECK_EQ(subject->worst_error(), 0.0);
    CHECK_EQ(subject->work().num_hops, 27u);
    const KernelTimes times = subject->run(3);
    CHECK(times.call_s.size() == 3 && times.read_s.empty() && times.call_s[0] > 0.0);
  }
  CHECK_THROWS(invalid_argument, "num_hops: expected at least num_workers + 2, 4, got 3",
               kbench::make_cpu_edges(edge("edge_counter", 2, 3)));
}

TEST_CASE("edges that nobody can measure are refused by name") {
  const auto open = [](const char* kernel, const auto& change) {
    KernelCase c = edge(kernel, 2);
    change(c);
    return open_cuda(c)->work().num_hops;
  };
  using C = KernelCase&;
  for (const char* kernel : {"edge_tag", "edge_counter", "edge_gather"}) {
    CHECK_THROWS(invalid_argument, "num_workers: expected at least 2, which wait for each other, got 1",
                 open(kernel, [](C c) { c.num_workers = 1; }));
    CHECK_THROWS(invalid_argument, "num_workers: expected at least 2", kbench::make_cpu_edges(edge(kernel, 1)));
  }
  CHECK_EQ(open("edge_same_worker", [](C c) { c.num_workers = 1; }), 7u);
  CHECK_THROWS(capacity, "num_workers: expected at most 3, got 4", open("edge_tag", [](C c) { c.num_workers = 4; }));
  CHECK_THROWS(capacity, "num_hops: expected at most 65536", open("edge_tag", [](C c) { c.num_hops = 65537; }));
  CHECK_THROWS(capacity, "num_signallers: expected at most 2, got 3",
               open("edge_gather", [](C c) { c.num_signallers = 3; }));
  CHECK_THROWS(capacity, "num_signallers: expected at most 1, got 2",
               open("edge_counter", [](C c) { c.num_signallers = 2; }));
  CHECK_THROWS(invalid_argument, "format: expected u32 for edge_tag, got 'bf16'",
               open("edge_tag", [](C c) { c.format = "bf16"; }));
}

CHECK_MAIN()
