// Cost tables of GPUs: measured times become times of one worker, and engines on such a device plan
// by them, not by those of another one or by a damaged file.
#include "device_engine_fixture.h"
#include "host_device_memory.h"
#include "kbench/cuda_costs.h"
#include "plan/costs.h"
#include "plan/task.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

using namespace mimo_rt;
using namespace fixture;
using kbench::CudaCostSizes;

namespace {

namespace fs = std::filesystem;

constexpr double kLaunchNs = 3000.0;

/// A GPU whose times are known: ns of a launch, by what it has to do.
struct ClockDevice : HostDeviceMemory<cuda::BenchDevice> {
  explicit ClockDevice(uint32_t count) : num_sms(count) {}
  uint64_t read_bytes() const override { return 1; }
  uint32_t num_multiprocessors() const override { return num_sms; }
  void check_mxfp8() const override {}

  void launch(const cuda::ExpertGateUpParams& p) override { add(2e-3 * *p.route.num_active * p.width * p.hidden_size); }
  void launch(const cuda::ProjectionParams& p) override {
    const bool is_fp8 = p.format == cuda::ProjectionFormat::fp8_e4m3;
    add((is_fp8 ? 4e-3 : 8e-3) * p.rows * p.k * (p.num_tokens < 8 ? 1 : p.num_tokens < 64 ? 2 : 3));
  }
  void launch(const cuda::RouterLogitsParams& p) override { add(16e-3 * p.num_experts * p.hidden_size); }
  void launch(const cuda::AttentionParams& p) override {
    add(5e-3 * p.num_q_heads / p.num_kv_heads * p.split_keys * (p.qk_head_dim + p.v_head_dim));
  }
  void launch(const cuda::RmsNormParams& p) override { add(p.num_tokens == 1 ? 0.0 : 0.25 * p.k); }
  void launch(const cuda::EdgeRelayParams& p, uint32_t num_blocks) override {
    CHECK_EQ(num_blocks, num_sms);
    CHECK(p.edge == cuda::RelayEdge::gather);
    add((1000.0 + 50.0 * (p.num_signallers - 2)) * p.num_hops);
  }
  void launch(const cuda::ExpertDownParams&) override {}
  void launch(const cuda::ExpertGateUpFp8Params&) override {}
  void launch(const cuda::ExpertDownFp8Params&) override {}
  void launch(const cuda::ExpertGateUpGemmParams&) override {}
  void launch(const cuda::ExpertDownGemmParams&) override {}
  void launch(const cuda::ExpertGateUpMxfp8Params&) override {}
  void launch(const cuda::ExpertDownMxfp8Params&) override {}
  void launch(const cuda::SelectExpertsParams&) override {}
  void launch(const cuda::SampleParams&) override {}
  void launch(const cuda::SampleRowsParams&) override {}
  void launch(const cuda::AcceptParams&) override {}

  /// Some calls are disturbed, and the first one is cold.
  KernelTimes time(uint32_t num_calls, const std::function<void(uint32_t)>& call) override {
    KernelTimes times;
    for (uint32_t i = 0; i < num_calls; ++i) {
      ns = kLaunchNs;
      call(i);
      times.call_s.push_back(1e-9 * ns * (i == 0 || i % 4 == 3 ? 5 : 1));
      times.read_s.push_back(1e-6);
    }
    return times;
  }

  void add(double more_ns) { ns += more_ns; }

  const uint32_t num_sms;
  double ns = 0.0;
};

CudaCostSizes small_sizes() {
  CudaCostSizes sizes;
  sizes.rows = 160, sizes.k = 96;
  sizes.num_experts = 5, sizes.expert_width = 32;
  sizes.router_experts = 12, sizes.router_k = 64;
  sizes.split_keys = 64, sizes.qk_head_dim = 48, sizes.v_head_dim = 32, sizes.num_q_per_kv = 2;
  sizes.num_hops = 20;
  return sizes;
}

CostTable measure(uint32_t num_sms, CostKey key = {.backend = "cuda"},
                  const std::function<void(double)>& progress = {}) {
  if (key.num_workers == 0) key.num_workers = num_sms;
  if (key.processor.empty()) key.processor = ClockDevice(num_sms).name();
  const auto open = [&] { return std::make_unique<ClockDevice>(num_sms); };
  return kbench::measure_cuda_costs(key, open, small_sizes(), progress);
}

/// As a device might have measured it: `edge_worker_ns` says how dear many workers are.
CostTable table_with(double edge_worker_ns) {
  CostTable table;
  for (auto& times : table.matrix_ns)
    for (size_t i = 0; i < times.size(); ++i) times[i] = 20.0 + CostTable::kTokens[i];
  table.attention_ns = table.norm_ns = 10.0;
  table.edge_ns = 1000.0;
  table.edge_worker_ns = edge_worker_ns;
  return table;
}

/// The cache directory of this test.
struct Cache {
  Cache() { setenv("MIMO_RT_CACHE", dir.path().c_str(), 1); }
  writer::TempDir dir;
};

CostKey key_of(const std::string& device, uint32_t num_workers = 2) {
  return {.backend = "cuda", .num_workers = num_workers, .processor = device};
}

uint32_t num_tasks_of(const Plan& plan, TaskKind kind) {
  uint32_t count = 0;
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w)) count += task.kind == kind;
  return count;
}

bool has_note(const Engine& engine, const std::string& text) {
  const std::vector<std::string> notes = engine.notes();
  return std::ranges::any_of(notes, [&](const std::string& note) { return note.find(text) != std::string::npos; });
}

}  // namespace

TEST_CASE("times of launches become times of one worker, without the launch") {
  for (const uint32_t num_sms : {3u, 8u}) {
    std::vector<double> told;
    const CostTable table = measure(num_sms, {.backend = "cuda"}, [&](double part) { told.push_back(part); });
    const auto is_near = [](double got, double expected) { return std::abs(got - expected) < 1e-6 * expected; };
    const double per_ns = 1024.0 * num_sms;  // a worker does a part of the matrix
    for (size_t i = 0; i < CostTable::kTokens.size(); ++i) {
      const double more = i < 3 ? 1 : i < 5 ? 2 : 3;
      CHECK(is_near(table.matrix_ns[0][i], 1e-3 * per_ns));
      CHECK(is_near(table.matrix_ns[1][i], 4e-3 * per_ns * more));
      CHECK(is_near(table.matrix_ns[2][i], 8e-3 * per_ns * more));
      CHECK(is_near(table.matrix_ns[3][i], 16e-3 * per_ns));
    }
    CHECK(is_near(table.attention_ns, 5e-3 * 1024));
    CHECK(is_near(table.norm_ns, 0.25 * 1024));
    CHECK_EQ(table.prepare_ns, 0.0);
    CHECK(is_near(table.edge_ns, 1000.0) && is_near(table.edge_worker_ns, 50.0));
    CHECK(table.is_sound() && table.is_measured());
    CHECK(told.front() == 0.0 && told.back() == 1.0 && std::is_sorted(told.begin(), told.end()));
  }
}

TEST_CASE("a table of a GPU is of all its multiprocessors, and of BF16 activations") {
  CHECK_THROWS(invalid_argument, "num_workers: expected 3, all multiprocessors",
               measure(3, {.backend = "cuda", .num_workers = 2}));
  CHECK_THROWS(unavailable, "activations: expected bf16 on 'cuda', got int8",
               measure(3, {.backend = "cuda", .activations = "int8"}));
  CHECK_THROWS(invalid_argument, "processor: expected 'emulated', the GPU that would be measured, got 'another'",
               measure(3, {.backend = "cuda", .processor = "another"}));
  struct StoppedClock : ClockDevice {
    using ClockDevice::ClockDevice;
    KernelTimes time(uint32_t num_calls, const std::function<void(uint32_t)>&) override {
      return {.call_s = std::vector<double>(num_calls, 0.0), .read_s = std::vector<double>(num_calls, 1e-6), .floor_s = {}};
    }
  };
  const auto open = [] { return std::make_unique<StoppedClock>(2u); };
  const CostKey key{.backend = "cuda", .num_workers = 2, .processor = "emulated"};
  CHECK_THROWS(device_lost, "clock", kbench::measure_cuda_costs(key, open, small_sizes(), {}));
}

TEST_CASE("every GPU has a table of its own, and a key that names none has none") {
  const Cache cache;
  const CostKey h100 = key_of("NVIDIA H100", 132), h200 = key_of("NVIDIA H200", 132);
  save_cost_table(h100, table_with(1.0));
  save_cost_table(h200, table_with(2.0));
  CHECK(load_cost_table(h100) == table_with(1.0) && load_cost_table(h200) == table_with(2.0));
  CHECK_EQ(cost_table_path(h200).filename().string(), "cuda-NVIDIA_H200-bf16-132.json");
  CHECK_EQ(cost_table_path(key_of("../a\n/b")).filename().string(), "cuda-___a__b-bf16-2.json");
  for (const CostKey& key : {key_of(""), key_of("NVIDIA H100", 0)}) {
    constexpr const char* kText = "key: expected the processor and num_workers of a GPU";
    CHECK_THROWS(invalid_argument, kText, cost_table_path(key));
    CHECK_THROWS(invalid_argument, kText, save_cost_table(key, table_with(1.0)));
    CHECK_THROWS(invalid_argument, kText, load_cost_table(key));
  }
}

TEST_CASE("an engine plans by the table of its device: other shares, the same tokens") {
  const Cache cache;
  const Tokens prompt = random_tokens(model().config, 9, 3);
  const std::string name = open_test_device()->name();
  Tokens expected;
  std::vector<uint32_t> num_tasks;
  for (const double edge_worker_ns : {0.001, 1e6}) {
    save_cost_table(key_of(name), table_with(edge_worker_ns));
    const auto engine = open_engine();
    CHECK(engine->decode_plan().options().costs == table_with(edge_worker_ns));
    CHECK(!has_note(*engine, "costs"));
    num_tasks.push_back(num_tasks_of(engine->decode_plan(), TaskKind::o_proj));
    Session session(engine, kSmall);
    const Tokens tokens = session.generate(prompt, greedy(6)).token_ids;
    if (expected.empty()) expected = tokens;
    CHECK(tokens == expected);
  }
  CHECK_EQ(num_tasks[0], 2 * num_tasks[1]);  // two workers, or one
  CHECK(!open_engine(open_test_device(), options_for(3))->decode_plan().options().costs.is_measured());
}

TEST_CASE("the table of another device and a damaged file are not used, and the engine says so") {
  const Cache cache;
  const std::string name = open_test_device()->name();
  const auto engine_with = [&](const std::string& why) {
    const auto engine = open_engine();
    CHECK(!engine->decode_plan().options().costs.is_measured());
    CHECK_EQ(has_note(*engine, "costs not used"), !why.empty());
    CHECK(why.empty() || has_note(*engine, why));
    Session session(engine, kSmall);
    CHECK_EQ(session.generate(Tokens{1, 2, 3}, greedy(2)).token_ids.size(), 2u);
  };
  engine_with("");  // there is none
  const CostKey another = key_of("another " + name);
  save_cost_table(another, table_with(1.0));
  engine_with("");
  fs::rename(cost_table_path(another), cost_table_path(key_of(name)));
  engine_with("measured on 'another " + name + "', this is '" + name + "'");
  std::ofstream(cost_table_path(key_of(name)), std::ios::trunc) << "{\"version\": 1";
  engine_with(cost_table_path(key_of(name)).string());
}

TEST_CASE("without a table, estimates are those of a multiprocessor") {
  const Cache cache;
  const auto engine = open_engine();
  const PlanOptions gpu = engine->decode_plan().options(), cpu;
  CHECK(gpu.bytes_per_ns == cuda_plan_options().bytes_per_ns && gpu.macs_per_ns == cuda_plan_options().macs_per_ns);
  CHECK(gpu.attention_split_keys == 256 && gpu.fuse_norm == PlanOptions::FuseNorm::no && gpu.max_tokens == 8);
  // Eight tokens do not hold up the stream of MXFP4 weights, as they do on a core.
  const auto times_of = [&](PlanOptions options) {
    const CostModel costs(model().config, options);
    const auto tile = [&](double tokens) { return costs.matrix_tile(PackedFormat::mxfp4, 4096, tokens); };
    return tile(8) / tile(1);
  };
  CHECK_EQ(times_of(gpu), 1.0);
  CHECK(times_of(cpu) > 2.0);
  PlanOptions measured = gpu;
  measured.costs = table_with(1.0);
  CHECK(CostModel(model().config, measured).expert_tile_price() > 0.0);  // although nothing is prepared
  const CostModel costs(model().config, gpu);
  CHECK_EQ(costs.task_ns(0.0, 1), static_cast<uint32_t>(gpu.task_overhead_ns));
  for (const auto& [field, name] : {std::pair{&PlanOptions::macs_per_ns, "macs_per_ns"},
                                    {&PlanOptions::task_overhead_ns, "task_overhead_ns"}}) {
    PlanOptions bad = plan_options(2, 1, 1);
    bad.*field = -1.0;
    CHECK_THROWS(invalid_argument, name, Plan::build(model().config, bad));
  }
}

CHECK_MAIN()
