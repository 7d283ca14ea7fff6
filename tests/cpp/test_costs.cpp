// Measured costs: their file, and what they change in a plan.
#include "cpu/dispatch.h"
#include "plan/builder.h"
#include "plan/costs.h"
#include "plan/task.h"
#include "step_fixture.h"

#include "check.h"

#include <mimo_rt/costs.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>

using namespace mimo_rt;
using namespace fixture;

namespace {

namespace fs = std::filesystem;

/// A table in which 1024 weights cost 100 ns for one token and 10 ns for each more.
CostTable simple_table(double edge_ns, double edge_worker_ns) {
  CostTable table;
  for (auto& times : table.matrix_ns)
    for (size_t i = 0; i < times.size(); ++i) times[i] = 90.0 + 10.0 * CostTable::kTokens[i];
  table.attention_ns = 20.0;
  table.norm_ns = 200.0;
  table.prepare_ns = 300.0;
  table.edge_ns = edge_ns;
  table.edge_worker_ns = edge_worker_ns;
  return table;
}

/// The cache directory of this test.
struct Cache {
  Cache() {
    std::string name = (fs::temp_directory_path() / "mimo_rt_test_costs_XXXXXX").string();
    CHECK(mkdtemp(name.data()) != nullptr);
    path = name;
    setenv("MIMO_RT_CACHE", path.c_str(), 1);
  }
  ~Cache() { fs::remove_all(path); }
  fs::path path;
};

uint32_t num_tasks_of(const Plan& plan, TaskKind kind) {
  uint32_t count = 0;
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w)) count += task.kind == kind && task.layer_idx <= 1;
  return count;
}

Plan build(uint32_t num_workers, uint32_t max_tokens, const CostTable& table) {
  PlanOptions options = plan_options(num_workers, max_tokens, max_tokens);
  options.costs = table;
  const Plan plan = Plan::build(small_quantised(), options);
  plan.verify();
  return plan;
}

}  // namespace

TEST_CASE("a table comes back from its file as it was, for its key alone") {
  const Cache cache;
  const CostKey key{.backend = "cpu-generic", .num_workers = 3};
  CHECK(!load_cost_table(key));
  CostTable table = simple_table(250.5, 1.0 / 3.0);
  table.matrix_ns[2][5] = 1234.5678901234567;
  save_cost_table(key, table);
  CHECK(cost_table_path(key).string().starts_with(cache.path.string()));
  CHECK(load_cost_table(key) == table);
  CHECK(!load_cost_table({.backend = "cpu-generic", .num_workers = 4}));
  CHECK(!load_cost_table({.backend = "cpu-generic", .num_workers = 3, .activations = "int8"}));
  CHECK_EQ(std::distance(fs::directory_iterator(cache.path / "costs"), {}), 1);  // nothing half-written is left
  table.norm_ns = 1.0;
  save_cost_table(key, table);
  CHECK(load_cost_table(key) == table);
  const CostKey no_utf8{.backend = "cpu-generic", .num_workers = 5, .processor = "\xff"};
  save_cost_table(no_utf8, table);
  CHECK(load_cost_table(no_utf8) == table);
}

TEST_CASE("a file that is no table is refused by name; one of another processor is not used") {
  const Cache cache;
  const CostKey key{.backend = "cpu-generic", .num_workers = 2};
  save_cost_table(key, simple_table(250, 50));
  std::stringstream whole;
  whole << std::ifstream(cost_table_path(key)).rdbuf();
  const std::string good = whole.str();
  const auto write = [&](const std::string& text) { std::ofstream(cost_table_path(key), std::ios::trunc) << text; };
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    CHECK(at != std::string::npos);
    return text.replace(at, from.size(), to);
  };
  write(good);
  CHECK(load_cost_table(key).has_value());
  write(replaced("\"processor\": \"", "\"processor\": \"another "));
  CHECK_THROWS(unavailable, "measured on 'another ", load_cost_table(key));
  write(replaced("mimo_rt costs 1", "mimo_rt costs 2"));
  CHECK(!load_cost_table(key));
  for (const auto& [from, to, why] : std::initializer_list<std::array<const char*, 3>>{
           {"250.0", "-250.0", "expected times"}, {"250.0", "1e300", "expected times"},
           {"100.0", "1000.0", "none of a matrix falling"}, {"250.0", "\"250\"", "edge_ns: expected a number"},
           {"250.0", "null", "edge_ns: expected a number"}, {"\"edge_ns\"", "\"edge\"", "'edge_ns'"},
           {"\"mxfp4\"", "\"mxfp5\"", "'mxfp4'"}, {"100.0", "100.0, 100.0", "expected 6 times"},
           {"\"version\"", "\"versions\"", "'version'"}}) {
    write(replaced(from, to));
    CHECK_THROWS(bad_format, why, load_cost_table(key));
    CHECK_THROWS(bad_format, cost_table_path(key).string().c_str(), load_cost_table(key));
  }
  for (const std::string& text : {std::string(), std::string("[]"), std::string("{"), std::string("\xff\xfe"),
                                  good.substr(0, good.size() / 2), good + std::string(1 << 17, ' ')}) {
    write(text);
    CHECK_THROWS(bad_format, "mimo-rt bench costs", load_cost_table(key));
  }
  fs::remove(cost_table_path(key));
  fs::create_directory(cost_table_path(key));
  CHECK(!load_cost_table(key));
  CHECK_THROWS(io, "cannot", save_cost_table(key, simple_table(1, 1)));  // a directory has its name
  std::ofstream(cache.path / "file") << "no directory";
  setenv("MIMO_RT_CACHE", (cache.path / "file").c_str(), 1);
  CHECK_THROWS(io, "costs: cannot be made", save_cost_table(key, simple_table(1, 1)));
}

TEST_CASE("kernel sets of a backend have tables of their own") {
  const Cache cache;
  cpu::CpuFeatures features;
  features.avx2 = features.fma = true;
  features.avx512f = features.avx512bw = features.avx512vl = features.avx512dq = true;
  std::set<std::string> paths, sets;
  const auto add = [&] {
    const cpu::CpuBackend backend = cpu::backends_for(features).back();
    if (!backend.supported) return;  // a build without AVX-512
    const CostKey key{.backend = backend.name, .num_workers = 2, .kernel_set = backend.kernel_set};
    CHECK(!load_cost_table(key));
    save_cost_table(key, simple_table(250, 50));
    CHECK(load_cost_table(key).has_value());
    paths.insert(cost_table_path(key));
    sets.insert(backend.kernel_set);
  };
  add();
  features.avx512bf16 = features.avx512vbmi = features.avx512vnni = true;
  add();
  features.fast_bf16 = true;
  add();
  CHECK_EQ(paths.size(), sets.size());
  CHECK(sets.empty() || sets.size() == 3);
  const CostKey key = cost_key("cpu-generic", 3, "int8");
  CHECK(key.backend == "cpu-generic" && key.num_workers == 3 && key.activations == "int8" && key.kernel_set.empty());
  const cpu::CpuBackend& widest = cpu::cpu_backends().back();
  CHECK_EQ(cost_key("cpu").kernel_set, std::string(widest.supported ? widest.kernel_set : ""));
  CHECK_EQ(cost_key("cpu-generic").num_workers, num_usable_cores());
  CHECK_THROWS(invalid_argument, "device", cost_key("tpu"));
}

TEST_CASE("times between the measured numbers of tokens are interpolated") {
  const ModelConfig config = small_quantised();
  PlanOptions options;
  options.costs = simple_table(250, 50);
  const CostModel model(config, options);
  const auto per_1024 = [&](double tokens) {
    return model.matrix_tile(PackedFormat::bf16, 1024, tokens) / 16;  // a tile has 16 rows
  };
  CHECK(std::fabs(per_1024(512.0) - 8 * (90.0 + 640.0)) < 1e-9 * 512);
  for (const double tokens : {0.5, 1.0, 1.5, 2.0, 3.0, 11.0, 63.0, 64.0})
    CHECK(std::fabs(per_1024(tokens) - (90.0 + 10.0 * std::max(tokens, 1.0))) < 1e-6);
  options.costs.matrix_ns[2][1] = 300.0;
  const CostModel bent(config, options);
  CHECK(std::fabs(bent.matrix_tile(PackedFormat::bf16, 1024, 1.5) / 16 - 200.0) < 1e-9);
  CHECK(std::fabs(bent.matrix_tile(PackedFormat::fp8_e4m3, 1024, 1.5) / 16 - 105.0) < 1e-9);  // another format
}

TEST_CASE("a plan refuses costs that cannot be") {
  PlanOptions options = plan_options(2, 4, 4);
  options.costs = simple_table(250, 50);
  CHECK(Plan::build(small_quantised(), options).num_tasks() > 0);
  for (const double bad : {-1.0, 2e9, std::nan("")}) {
    options.costs = simple_table(250, 50);
    options.costs.norm_ns = bad;
    CHECK_THROWS(invalid_argument, "costs: expected times", Plan::build(small_quantised(), options));
  }
  options.costs = simple_table(250, 50);
  options.costs.matrix_ns[1][3] = 1.0;
  CHECK_THROWS(invalid_argument, "falling", Plan::build(small_quantised(), options));
}

TEST_CASE("work is shared out among as many workers as pay") {
  const ModelConfig config = small_quantised();
  PlanOptions options;
  options.num_workers = 64;
  options.costs = simple_table(250, 100);
  const CostModel model(config, options);
  // 100 tiles of 100 ns: ceil(100 / n) * 100 + 100 n is least, 2000, at n = 10.
  CHECK_EQ(model.choose_parts(100, 100.0, 64), 10u);
  CHECK_EQ(model.choose_parts(100, 100.0, 7), 7u);
  CHECK_EQ(model.choose_parts(100, 1e6, 64), 50u);  // 51 .. 64 workers have two tiles, too
  CHECK_EQ(model.choose_parts(1, 10.0, 1), 1u);
  for (uint32_t tiles = 1; tiles <= 200; tiles += 7)  // never beaten by any other number
    for (const double tile_ns : {3.0, 70.0, 900.0}) {
      const auto cost = [&](uint32_t n) { return std::ceil(double(tiles) / n) * tile_ns + 100.0 * n; };
      const uint32_t chosen = model.choose_parts(tiles, tile_ns, std::min(tiles, 64u));
      for (uint32_t n = 1; n <= std::min(tiles, 64u); ++n) CHECK(cost(chosen) <= cost(n));
    }
  options.costs = {};
  CHECK_EQ(CostModel(config, options).choose_parts(100, 100.0, 64), 64u);  // nothing measured: everybody
}

TEST_CASE("plans follow the table, and stay sound") {
  const CostTable cheap = simple_table(1, 0.001), dear = simple_table(10'000, 10'000);
  CHECK_EQ(num_tasks_of(build(6, 4, cheap), TaskKind::o_proj), 2 * 5u);  // 10 row groups: 5 and 6 workers end alike
  CHECK_EQ(num_tasks_of(build(6, 4, dear), TaskKind::o_proj), 2 * 1u);
  CHECK_EQ(num_tasks_of(build(6, 4, {}), TaskKind::o_proj), 2 * 6u);
  // Six workers, 1 .. 4 rows: fused, each normalises 1.5 more rows of 160 elements than its own, 47 ns.
  CHECK(num_tasks_of(build(6, 4, simple_table(45, 0.001)), TaskKind::rms_norm) > 0);
  CHECK_EQ(num_tasks_of(build(6, 4, simple_table(49, 0.001)), TaskKind::rms_norm), 0u);
  CHECK(build(6, 4, cheap).hash() != build(6, 4, dear).hash());
  CHECK_EQ(build(6, 4, dear).hash(), build(6, 4, dear).hash());
}

/// An eighth of the model's heads, widths and vocabulary, in a few of its layers.
static ModelConfig rank_slice() {
  ModelConfig config = test_configs::mimo_v2_5_pro_fp4();
  config.num_layers = 4;
  config.layers.resize(config.num_layers);
  for (LayerConfig& layer : config.layers) layer.num_q_heads /= 8, layer.num_kv_heads /= 8;
  config.intermediate_size /= 8, config.expert_intermediate_size /= 8, config.vocab_size /= 8;
  return config;
}

TEST_CASE("routes come by tag edges also where the table leaves workers without early tasks") {
  const ModelConfig config = rank_slice();
  CostTable table = simple_table(1000, 20);
  for (auto& times : table.matrix_ns)
    for (double& ns : times) ns /= 5;
  table.prepare_ns = 0;
  for (const uint32_t num_workers : {132u, 148u})
    for (const uint32_t max_tokens : {1u, 8u}) {
      PlanOptions options = device_plan_options(num_workers, max_tokens, max_tokens);
      options.costs = table;
      const auto num_tags = [](const Plan& plan) {
        return std::ranges::count(plan.counters(), CounterInfo::Kind::tag, &CounterInfo::kind);
      };
      const Plan plan = Plan::build(config, options);
      plan.verify();
      CHECK_EQ(num_tags(plan), std::ranges::count(config.layers, true, &LayerConfig::is_moe));
      uint32_t num_late = 0;
      for (uint32_t w = 0; w < num_workers; ++w)
        num_late += std::ranges::none_of(plan.tasks(w), [](const Task& task) { return task.layer_idx == 0; });
      CHECK(num_late > 0);  // the case at hand
      options.tag_edges = false;
      CHECK_EQ(num_tags(Plan::build(config, options)), 0);
    }
}

TEST_CASE("a table gives the logits of any other plan, bit for bit") {
  const ModelConfig config = small_quantised();
  const Weights weights = Weights::synthetic(config, 11);
  const std::vector<int32_t> tokens = random_tokens(config, 40, 3);
  const std::string backend = runnable_cpu_backends().back();
  std::vector<float> expected;
  for (const CostTable& table : {CostTable{}, simple_table(1, 0.001), simple_table(700, 300), simple_table(1e4, 1e4)}) {
    const Plan plan = build(3, 5, table);
    const auto executor = make_cpu_executor(weights, nullptr, {&plan}, backend, {.num_workers = 3});
    KvCache cache(config, {.max_context = 512, .max_step_tokens = 5, .num_seqs = 1});
    const std::vector<float> logits = feed(*executor, plan, cache, tokens, 5, config.vocab_size);
    if (expected.empty()) expected = logits;
    CHECK(logits == expected);
  }
}

TEST_CASE("costs are measured: more tokens cost more, and an edge something") {
  std::vector<double> told;
  const CostKey key{.backend = runnable_cpu_backends().back(), .num_workers = 2};
  const CostTable table = measure_costs(key, [&](double part) { told.push_back(part); });
  CHECK(table.is_measured());
  for (const auto& times : table.matrix_ns) {
    for (const double ns : times) CHECK(std::isfinite(ns) && ns > 0.0);
    CHECK(times.back() > times.front());
  }
  for (const double ns : {table.attention_ns, table.norm_ns, table.prepare_ns, table.edge_ns, table.edge_worker_ns})
    CHECK(std::isfinite(ns) && ns > 0.0);
  CHECK(told.size() > 20 && told.front() == 0.0 && told.back() == 1.0 && std::is_sorted(told.begin(), told.end()));
}

TEST_CASE("measuring stops when its caller throws, and refuses what it cannot measure") {
  int num_calls = 0;
  bool was_stopped = false;
  try {
    measure_costs({.backend = "cpu-generic", .num_workers = 1}, [&](double) {
      if (++num_calls == 2) throw std::runtime_error("enough");
    });
  } catch (const std::runtime_error& error) {
    was_stopped = std::string(error.what()) == "enough";
  }
  CHECK(was_stopped);
  CHECK_EQ(num_calls, 2);
  CHECK_THROWS(unavailable, "expected 'cuda' or a CPU backend", measure_costs({.backend = "ref"}));
  CHECK_THROWS(invalid_argument, "activations: expected bf16 or int8",
               measure_costs({.backend = "cpu-generic", .num_workers = 1, .activations = "fp8"}));
}

CHECK_MAIN()
