// The planner and the verifier on sound plans: real and small models, many worker counts and step sizes.
#include "check.h"
#include "plan_mutator.h"
#include "test_configs.h"

#include "plan/accesses.h"
#include "plan/buffers.h"
#include "plan/builder.h"
#include "plan/kinds.h"
#include "plan/task.h"
#include "plan/trace.h"
#include "weights/qkv_tiles.h"

#include <mimo_rt/plan.h>
#include <nlohmann/json.hpp>

#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <sstream>

using namespace mimo_rt;
using FuseNorm = PlanOptions::FuseNorm;

namespace {

PlanOptions make_options(uint32_t num_workers, uint32_t max_tokens, FuseNorm fuse = FuseNorm::automatic) {
  PlanOptions options;
  options.num_workers = num_workers;
  options.max_tokens = max_tokens;
  options.max_logit_rows = std::min(max_tokens, 8u);
  options.fuse_norm = fuse;
  return options;
}

/// Of the largest step.
uint32_t largest_count(const Plan& plan, TripCount trip) {
  const uint32_t tokens = plan.options().max_tokens;
  const uint32_t counts[] = {1, tokens, max_active_experts(plan.shape(), tokens), plan.options().max_context_rows,
                             plan.shape().draft.block_size};
  return counts[static_cast<size_t>(trip)];
}

bool is_large(const ModelConfig& config) { return config.num_layers > 40; }

/// Everything that a stage's tasks cover in a step with `count` tokens or active experts.
std::map<uint32_t, uint32_t> covered_tiles(const Plan& plan, const Stage& stage, uint32_t count) {
  std::map<uint32_t, uint32_t> times;
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w)) {
      if (!(stage_of(task) == stage)) continue;
      const uint64_t end = uint64_t{task.tile_end} * (trip_count(task.kind) == TripCount::once ? 1 : count);
      for (uint64_t t = task.tile_first; t < end; t += task.tile_stride) ++times[static_cast<uint32_t>(t)];
    }
  return times;
}

/// Exactly 0 .. num_tiles - 1, each once.
bool is_partition(const std::map<uint32_t, uint32_t>& times, uint32_t num_tiles) {
  uint32_t next = 0;
  for (const auto& [tile, count] : times)
    if (tile != next++ || count != 1) return false;
  return next == num_tiles;
}

const Task* find_task(const Plan& plan, TaskKind kind) {
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w))
      if (task.kind == kind) return &task;
  return nullptr;
}

struct StageSplit {
  uint32_t num_tasks = 0;
  uint64_t all_tiles = 0;           ///< of the largest step
  uint32_t fewest = ~0u, most = 0;  ///< tiles of a task
};

/// How the tiles of each stage are spread over the workers in the largest step.
std::map<std::string, StageSplit> stage_splits(const Plan& plan) {
  std::map<std::string, StageSplit> stages;
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w)) {
      const TripCount trip = trip_count(task.kind);
      const uint64_t count = largest_count(plan, trip);
      StageSplit& split = stages[stage_name(stage_of(task))];
      const uint64_t end = trip == TripCount::once ? task.tile_end : task.tile_end * count;
      const uint32_t tiles = static_cast<uint32_t>((end - task.tile_first + task.tile_stride - 1) / task.tile_stride);
      split.all_tiles = trip == TripCount::once ? num_tiles(plan.shape(), task.kind, task.layer_idx) : end;
      split.fewest = std::min(split.fewest, tiles), split.most = std::max(split.most, tiles);
      ++split.num_tasks;
    }
  return stages;
}

/// No worker is idle while another has two tiles, and none has two more than another.
bool is_even(const StageSplit& split, uint32_t num_workers) {
  return split.num_tasks == std::min<uint64_t>(num_workers, split.all_tiles) && split.most - split.fewest <= 1;
}

/// Pairs of row groups that the busiest worker computes with `num_active` experts, over the mean.
double imbalance(uint32_t shares, uint32_t num_pairs, uint32_t num_workers, uint32_t num_active) {
  std::vector<uint32_t> load(num_workers, 0);
  for (uint32_t t = 0; t < shares * num_active; ++t) {
    const uint32_t c = t % shares;
    load[t % num_workers] += share_begin(c + 1, shares, num_pairs) - share_begin(c, shares, num_pairs);
  }
  return *std::max_element(load.begin(), load.end()) * double(num_workers) / (double(num_pairs) * num_active);
}

}  // namespace

TEST_CASE("every plan of every model verifies") {
  uint32_t num_plans = 0;
  for (const auto& [name, config] : test_configs::all_configs())
    for (uint32_t workers : {1u, 2u, 3u, 7u, 16u, 132u})
      for (uint32_t tokens : {1u, 8u, 64u, 512u})
        for (FuseNorm fuse : {FuseNorm::automatic, FuseNorm::yes, FuseNorm::no}) {
          // The other norms and the middle sizes of large models cost time and show nothing new.
          const bool other_fuse = fuse != FuseNorm::automatic;
          if (workers == 132 && (other_fuse || tokens == 64) && config.num_layers > 8) continue;
          if (is_large(config) && (other_fuse || workers == 3 || workers == 7)) continue;
          try {
            const VerifyReport report = Plan::build(config, make_options(workers, tokens, fuse)).verify();
            CHECK_EQ(report.num_workers, workers);
            CHECK(report.num_tasks > 0 && report.num_accesses > report.num_tasks);
            ++num_plans;
          } catch (const Error& error) {
            check::report(__FILE__, __LINE__, name + " workers " + std::to_string(workers) + " tokens " +
                                                  std::to_string(tokens) + ": " + error.what());
          }
        }
  CHECK(num_plans > 400);
}

TEST_CASE("plans of the 70-layer model with 132 workers verify") {
  for (uint32_t tokens : {8u, 512u}) {
    const Plan plan = Plan::build(test_configs::mimo_v2_5_pro_fp4(), make_options(132, tokens));
    const VerifyReport report = plan.verify();
    std::printf("  %u tokens: %s\n", tokens, report.to_string().c_str());
    CHECK(report.num_ordered_pairs > 10'000'000);
    CHECK(report.to_string().find("without deadlock") != std::string::npos);
  }
}

TEST_CASE("phases cover every tile once for any number of tokens and of active experts") {
  for (const auto& [name, config] : test_configs::tiny_configs())
    for (uint32_t workers : {1u, 3u, 7u, 20u}) {
      PlanOptions options = make_options(workers, 5, workers % 2 ? FuseNorm::yes : FuseNorm::no);
      options.is_round = true, options.max_context_rows = 3;  // has the tasks of a step as well
      const DraftConfig draft = test_configs::tiny_draft(config, 5);
      const Plan plan = Plan::build(config, options, &draft);
      std::set<std::string> seen;
      for (uint32_t w = 0; w < workers; ++w)
        for (const Task& task : plan.tasks(w)) {
          if (!seen.insert(stage_name(stage_of(task))).second) continue;
          const TripCount trip = trip_count(task.kind);
          const uint32_t most = largest_count(plan, trip);
          const uint32_t tiles = trip == TripCount::once ? num_tiles(plan.shape(), task.kind, task.layer_idx)
                                                         : task.tile_end;
          for (uint32_t n = 1; n <= most; ++n)
            CHECK(is_partition(covered_tiles(plan, stage_of(task), n), tiles * n));
          CHECK(!is_partition(covered_tiles(plan, stage_of(task), most), tiles * most + 1));  // sees a gap
        }
    }
}

TEST_CASE("equal inputs give equal plans, others give others") {
  std::set<uint64_t> hashes;
  uint32_t num_plans = 0;
  for (const auto& [name, config] : test_configs::all_configs())
    for (uint32_t workers : {1u, 2u, 16u})
      for (uint32_t tokens : {1u, 8u, 64u}) {
        const Plan a = Plan::build(config, make_options(workers, tokens));
        const Plan b = Plan::build(config, make_options(workers, tokens));
        CHECK_EQ(a.hash(), b.hash());
        CHECK(is_large(config) || a.dump() == b.dump());
        hashes.insert(a.hash());
        ++num_plans;
      }
  hashes.insert(Plan::build(test_configs::tiny(), make_options(2, 8, FuseNorm::no)).hash());
  CHECK_EQ(hashes.size(), size_t{num_plans} + 1);
}

TEST_CASE("a plan keeps the epoch rule and uses the fixed buffers") {
  const Plan plan = Plan::build(test_configs::synthetic_slice(), make_options(7, 8));
  uint32_t num_gate_signals = 0;
  for (uint32_t w = 0; w < plan.num_workers(); ++w) {
    const std::span<const Task> tasks = plan.tasks(w);
    CHECK(tasks[0].num_waits >= 1 && tasks[0].waits[0].counter == plan.gate_counter() && tasks[0].waits[0].value == 0);
    for (const Task& task : tasks) num_gate_signals += task.signal_counter == plan.gate_counter();
  }
  CHECK_EQ(num_gate_signals, 1u);
  CHECK(plan.tasks(0).back().kind == TaskKind::sample);
  CHECK_EQ(plan.tasks(0).back().signal_counter, plan.gate_counter());
  CHECK_EQ(plan.buffers().size(), size_t{kFirstKv} + 16);
  CHECK_EQ(plan.buffers()[kX].name, std::string("x"));
  CHECK_EQ(plan.buffers()[kFirstKv + 15].name, std::string("kv.15"));
  CHECK_EQ(plan.buffers()[kAct].rows, 8u * 4);
  CHECK_EQ(plan.buffers()[kAct].cols, 4096u);
  CHECK(!find_task(plan, TaskKind::rms_norm));  // fused up to 16 tokens
  CHECK(find_task(plan, TaskKind::qkv_proj)->flags & kFusedNorm);
  const Plan prefill = Plan::build(test_configs::synthetic_slice(), make_options(7, 17));
  CHECK(find_task(prefill, TaskKind::rms_norm));
  CHECK(!(find_task(prefill, TaskKind::qkv_proj)->flags & kFusedNorm));
}

TEST_CASE("work is split evenly") {
  for (uint32_t workers : {16u, 132u, 400u}) {
    const Plan plan = Plan::build(test_configs::mimo_v2_5_pro_fp4(), make_options(workers, 8));
    const std::map<std::string, StageSplit> stages = stage_splits(plan);
    CHECK_EQ(stages.size(), 2u + 70 * 3 + 2 + 69 * 4 + 1);
    uint32_t num_uneven = 0;
    for (const auto& [stage, split] : stages) num_uneven += !is_even(split, workers);
    CHECK_EQ(num_uneven, 0u);
  }
  // An idle worker is seen: one worker takes over the whole part of another.
  PlanMutator idle(Plan::build(test_configs::tiny_all_dense(), make_options(3, 8)));
  CHECK(is_even(stage_splits(idle.plan).at("layer 0 down_proj"), 3));
  for (Task& task : idle.lists[0])
    if (task.kind == TaskKind::down_proj && task.layer_idx == 0) task.tile_end = 2;
  std::erase_if(idle.lists[1],
                [](const Task& t) { return t.kind == TaskKind::down_proj && t.layer_idx == 0; });
  CHECK(!is_even(stage_splits(idle.finish()).at("layer 0 down_proj"), 3));

  // Experts, whatever the router says: 128 pairs of row groups over 132 workers, and other counts.
  CHECK_EQ(choose_expert_shares(128, 132, 64), 128u);
  CHECK_EQ(choose_expert_shares(128, 16, 64), 16u);  // one piece of every expert per worker
  CHECK_EQ(choose_expert_shares(64, 2, 32), 2u);
  for (uint32_t workers : {2u, 3u, 7u, 16u, 33u, 66u, 100u, 127u, 132u})
    for (uint32_t num_active : {8u, 16u, 48u}) {
      const double achieved = imbalance(choose_expert_shares(128, workers, 64), 128, workers, num_active);
      CHECK(achieved < 1.13);
    }
  CHECK(imbalance(100, 128, 100, 8) > 1.5);  // what one share per worker would have cost
}

TEST_CASE("packed qkv rows hold every element of every head once, RoPE pairs side by side") {
  for (const auto& [name, config] : test_configs::all_configs()) {
    const Plan plan = Plan::build(config, make_options(1, 1));
    for (const LayerConfig& layer : config.layers) {
      const std::vector<QkvTile> tiles = qkv_tiles(layer);
      CHECK_EQ(tiles.size(), size_t{num_tiles(plan.shape(), TaskKind::qkv_proj,
                                              static_cast<uint16_t>(&layer - config.layers.data()))});
      std::set<std::tuple<int, uint32_t, int32_t>> elements;
      bool in_order = true, paired = true;
      std::pair<int, uint32_t> last{0, 0};
      for (const QkvTile& tile : tiles) {
        in_order &= last <= std::pair<int, uint32_t>(int(tile.part), tile.head_idx);
        last = {int(tile.part), tile.head_idx};
        for (uint32_t row = 0; row < 16; ++row) {
          const int32_t element = qkv_tile_element(tile, layer, row);
          if (element < 0) continue;
          CHECK(elements.insert({int(tile.part), tile.head_idx, element}).second);
          const bool rotates = tile.part != QkvTile::Part::v && element < int32_t(layer.rotary_dim);
          paired &= rotates == tile.rotary;
          const int32_t partner = element + int32_t(layer.rotary_dim / 2);
          if (rotates && row < 8) paired &= qkv_tile_element(tile, layer, row + 8) == partner;
        }
      }
      CHECK(in_order && paired);
      CHECK_EQ(elements.size(), size_t{layer.num_q_heads + layer.num_kv_heads} * layer.qk_head_dim +
                                    layer.num_kv_heads * layer.v_head_dim);
      if (is_large(config)) break;
    }
  }
}

static void check_attention_accesses(uint32_t num_workers, uint32_t split_keys) {  // of 28, two share a kv head
  PlanOptions options = make_options(num_workers, 7, FuseNorm::no);
  options.attention_split_keys = split_keys;
  const Plan plan = Plan::build(test_configs::tiny(), options);
  uint32_t num_equal = 0;
  for (uint32_t w = 0; w < num_workers; ++w)
    for (const Task& task : plan.tasks(w)) {
      if (task.kind != TaskKind::attention) continue;
      std::set<std::pair<uint32_t, uint32_t>> expected, listed;
      const PlanShape::Layer& layer = plan.shape().layers[task.layer_idx];
      CHECK_EQ(task.tile_end, split_keys && num_workers < 28 ? layer.num_kv_heads : layer.num_q_heads);
      for (uint32_t t = task.tile_first; t < task.tile_end * 7; t += task.tile_stride) {
        const uint32_t begin = share_begin(t % task.tile_end, task.tile_end, layer.num_q_heads);
        const uint32_t end = share_begin(t % task.tile_end + 1, task.tile_end, layer.num_q_heads);
        for (uint32_t c = begin * layer.v_head_dim; c < end * layer.v_head_dim; ++c)
          expected.insert({t / task.tile_end, c});
      }
      for (const Access& access : task_accesses(plan, task))
        if (access.buffer == kQ)  // all that share the kv heads
          CHECK_EQ((access.col_end - access.col_begin) * layer.num_kv_heads % (layer.num_q_heads * layer.qk_head_dim), 0u);
        else if (access.buffer == kAttn && access.mode == AccessMode::write)
          for (uint32_t r = access.row_first; r < 7; r += access.row_stride)
            for (uint32_t c = access.col_begin; c < access.col_end; ++c) CHECK(listed.insert({r, c}).second);
      num_equal += expected == listed;
    }
  CHECK_EQ(num_equal, 3 * num_workers);  // a task of each layer
}

TEST_CASE("accesses of a strided task are the union of its tiles") {
  for (const auto& [workers, split] : {std::pair{5u, 0u}, {5u, 64u}, {28u, 64u}}) check_attention_accesses(workers, split);
}

TEST_CASE("every task kind has a place, buffers, tiles and accesses") {
  std::set<TaskKind> met;
  const DraftConfig draft = test_configs::tiny_draft(test_configs::tiny(), 4);
  for (const auto& [fuse, is_round] : {std::pair(FuseNorm::no, true), std::pair(FuseNorm::no, false)}) {
    PlanOptions options = make_options(2, 4, fuse);
    options.is_round = is_round, options.max_context_rows = 4;
    const Plan plan = Plan::build(test_configs::tiny(), options, &draft);
    for (uint32_t w = 0; w < 2; ++w)
      for (const Task& task : plan.tasks(w)) {
        met.insert(task.kind);
        bool writes = false;
        for (const Access& access : task_accesses(plan, task)) writes |= access.mode != AccessMode::read;
        CHECK(writes);
      }
  }
  for (uint16_t kind = 0; kind < kNumTaskKinds; ++kind) CHECK(met.count(static_cast<TaskKind>(kind)) == 1);
}

TEST_CASE("the golden config is the model that the tests build") {
  const auto path = std::filesystem::path(__FILE__).parent_path() / "../golden/mimo_v2_5_pro_fp4_config.json";
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  const ModelConfig parsed = ModelConfig::from_json(text.str(), path.string());
  const ModelConfig built = test_configs::mimo_v2_5_pro_fp4();
  CHECK_EQ(Plan::build(parsed, make_options(3, 8)).hash(), Plan::build(built, make_options(3, 8)).hash());
  CHECK_EQ(parsed.layers.size(), built.layers.size());
  for (size_t l = 0; l < built.layers.size(); ++l) {
    CHECK_EQ(parsed.layers[l].window_tokens, built.layers[l].window_tokens);
    CHECK_EQ(parsed.layers[l].has_sink, built.layers[l].has_sink);
    CHECK_EQ(parsed.layers[l].rope_theta, built.layers[l].rope_theta);
  }
  CHECK(parsed.expert_format == built.expert_format && parsed.linear_format == built.linear_format);
  CHECK(parsed.format_of("model.layers.5.self_attn.o_proj") == WeightFormat::plain);
}

TEST_CASE("wrong options and shapes are refused by name") {
  const ModelConfig config = test_configs::tiny();
  const auto build = [&](uint32_t workers, uint32_t tokens, uint32_t rows) {
    PlanOptions options = make_options(workers, tokens);
    options.max_logit_rows = rows;
    return Plan::build(config, options);
  };
  CHECK_THROWS(invalid_argument, "num_workers: expected 1..4096, got 0", build(0, 1, 1));
  CHECK_THROWS(invalid_argument, "max_tokens: expected 1..4096, got 4097", build(1, 4097, 1));
  CHECK_THROWS(invalid_argument, "max_logit_rows: expected 1..4, got 5", build(1, 4, 5));
  ModelConfig heads = config;
  heads.layers[1].num_kv_heads = 3;
  CHECK_THROWS(unsupported_shape, "layer 1 num_q_heads", Plan::build(heads, make_options(1, 1)));
  ModelConfig experts = config;
  experts.experts_per_token = 7;
  CHECK_THROWS(unsupported_shape, "experts_per_token: expected 1..6, got 7", Plan::build(experts, make_options(1, 1)));
}

TEST_CASE("a small config cannot ask for tables of many gigabytes") {
  ModelConfig config = test_configs::tiny_all_dense();
  const auto repeat = [&](uint32_t num_layers, const test_configs::Heads& heads) {
    config.num_layers = num_layers;
    config.layers.assign(num_layers, test_configs::make_layer(heads, false, 0, false));
  };
  const test_configs::Heads many{65535, 65535, 64, 64, 0};  // 3 * 4 * 65535 row groups
  repeat(4096, many);
  CHECK_THROWS(unsupported_shape, "row groups of the qkv matrices of layers 0..21: expected <= 16777216, got 17301240",
               Plan::build(config, make_options(1, 1)));
  repeat(21, many);
  CHECK(Plan::build(config, make_options(1, 1)).num_tasks() > 0);
  repeat(4096, {128, 8, 192, 128, 64});  // a deep model of the usual width
  CHECK(Plan::build(config, make_options(1, 1)).num_tasks() > 0);
}

TEST_CASE("more MoE layers do not take more searches for the best split of an expert") {
  ModelConfig config = test_configs::tiny_all_moe();
  config.expert_intermediate_size = 1u << 24;
  const auto cpu_seconds = [&](uint32_t num_layers) {
    config.num_layers = num_layers;
    config.layers.resize(num_layers, config.layers[0]);
    const std::clock_t begin = std::clock();
    CHECK(Plan::build(config, make_options(2, 16)).num_tasks() > 0);
    return double(std::clock() - begin) / CLOCKS_PER_SEC;
  };
  const double one = cpu_seconds(1), many = cpu_seconds(33);
  std::printf("  1 layer: %.3f s, 33 layers: %.3f s\n", one, many);
  CHECK(many < 8 * one + 0.05);
}

TEST_CASE("a violation is reported with worker, task, op, layer and buffer") {
  PlanMutator m(Plan::build(test_configs::tiny(), make_options(3, 4)));
  for (Task& task : m.lists[1])
    if (task.kind == TaskKind::o_proj && task.layer_idx == 1) task.num_waits = 0;
  CHECK_THROWS(plan_invalid, "(o_proj, layer 1) reads 'attn'", m.finish().verify());
  CHECK_THROWS(plan_invalid, "worker 1 task", m.finish().verify());
  PlanMutator stuck(Plan::build(test_configs::tiny(), make_options(3, 4)));
  std::swap(stuck.lists[0].front(), stuck.lists[0].back());
  CHECK_THROWS(plan_invalid, "can never start: expected counter", stuck.finish().verify());
}

TEST_CASE("the route comes by a tag edge in all MoE layers") {
  const auto num_tags = [](const Plan& plan) {
    return std::ranges::count(plan.counters(), CounterInfo::Kind::tag, &CounterInfo::kind);
  };
  const ModelConfig config = test_configs::mimo_v2_5_pro_fp4();
  PlanOptions options = cuda_plan_options();
  options.tag_edges = false, options.num_workers = 132;
  const Plan counted = Plan::build(config, options);
  options.tag_edges = true;
  const Plan tagged = Plan::build(config, options);
  CHECK_EQ(num_tags(counted), 0);
  CHECK_EQ(num_tags(tagged), std::ranges::count(config.layers, true, &LayerConfig::is_moe));
  CHECK(tagged.hash() != counted.hash() && tagged.num_tasks() == counted.num_tasks());
  CHECK_EQ(tagged.verify().num_tasks, counted.verify().num_tasks);
  CHECK(tagged.dump().find(">= 8, layer 1 select_experts (tag) >= 1") != std::string::npos);
  CHECK(tagged.dump().find("| signals layer 1 select_experts (tag)") != std::string::npos);
  options.max_tokens = cuda_max_step_tokens(config);  // 64 tokens with 8 experts each are too many for it
  CHECK_EQ(num_tags(Plan::build(config, options)), 0);
  options.max_tokens = 8, options.num_workers = 24;  // more than a small model's first layers have tasks for
  const Plan small = Plan::build(test_configs::tiny_all_moe(), options);
  CHECK_EQ(num_tags(small), std::ranges::count(test_configs::tiny_all_moe().layers, true, &LayerConfig::is_moe));
  uint32_t num_begin_with_experts = 0;  // and wait for the route by a tag edge
  for (uint32_t w = 0; w < 24; ++w) num_begin_with_experts += small.tasks(w)[0].kind == TaskKind::expert_gate_up;
  CHECK(num_begin_with_experts > 0 && small.verify().num_tasks == small.num_tasks());
}

TEST_CASE("a violation of a tag edge is reported with the edge") {
  PlanOptions options = make_options(3, 4);
  options.tag_edges = true;
  const Plan plan = Plan::build(test_configs::tiny(), options);
  const auto refused = [&](const char* needle, const std::function<void(Task&, PlanMutator&)>& change) {
    PlanMutator m(plan);
    for (auto& list : m.lists)
      for (Task& task : list) change(task, m);
    CHECK_THROWS(plan_invalid, needle, m.finish().verify());
  };
  refused("reads 'route' rows 0 step 1, cols [0, 30), tagged words of worker 0", [](Task& task, PlanMutator& m) {
    if (task.kind == TaskKind::expert_down && m.tag_wait(task)) --task.num_waits;
  });
  refused("(expert_down, layer 2) waits for 'layer 1 select_experts' but reads", [](Task& task, PlanMutator& m) {
    if (task.kind != TaskKind::expert_down || task.layer_idx != 2) return;
    for (uint32_t c = 0; c < m.counters.size(); ++c)
      if (m.counters[c].name == "layer 1 select_experts") task.waits[0] = {c, 1};
  });
  refused("by a task that reads buffer 6", [](Task& task, PlanMutator& m) {
    for (uint32_t c = 0; task.kind == TaskKind::o_proj && c < m.counters.size(); ++c)
      if (m.is_tag(c)) task.waits[0] = {c, 1};
  });
  refused("expected a task that writes its buffer 1", [](Task& task, PlanMutator& m) {
    if (m.is_tag(task.signal_counter)) m.counters[task.signal_counter].buffer = kX;
  });
}

TEST_CASE("dump prints one task per line") {
  const Plan plan = Plan::build(test_configs::tiny(), make_options(3, 4));
  const std::string text = plan.dump();
  CHECK_EQ(size_t(std::count(text.begin(), text.end(), '\n')), 1 + plan.buffers().size() + plan.num_tasks());
  CHECK(text.find("w2 #") != std::string::npos);
  CHECK(text.find("layer 1 expert_gate_up +norm tiles 0..3 step 3 per active expert") != std::string::npos);
  CHECK(text.find("| waits step >= 0") != std::string::npos);
}

TEST_CASE("traces are JSON and the predicted one respects every wait") {
  const Plan plan = Plan::build(test_configs::tiny(), make_options(3, 4));
  const std::vector<TaskTrace> predicted = predict_trace(plan);
  CHECK_EQ(predicted.size(), size_t{plan.num_tasks()});
  std::map<uint32_t, uint64_t> full_ns;
  for (const TaskTrace& record : predicted) {
    const Task& task = plan.tasks(record.worker_idx)[record.task_idx];
    for (uint32_t i = 0; i < task.num_waits; ++i)
      if (task.waits[i].value) CHECK(record.begin_ns >= full_ns[task.waits[i].counter]);
    uint64_t& full = full_ns[task.signal_counter];
    full = std::max(full, record.end_ns);
  }
  const std::vector<TaskTrace> measured = {
      {0, 0, 0, 1500, 2750}, {2, 1, 10, 10, 4000}, {1, 0, 100, 1100, 3000, 400, 250}};
  const auto trace = nlohmann::json::parse(chrome_trace_json(plan, measured));
  uint32_t tasks = 0, waits = 0, fetches = 0;
  for (const auto& event : trace["traceEvents"]) {
    if (event["ph"] != "X" || event["pid"] != 1) continue;
    ++(event["cat"] == "wait" ? waits : event["cat"] == "fetch" ? fetches : tasks);
    if (event["tid"] == 1) {  // 0.1: fetch, 0.5: wait, 1.1: task
      const double begin = event["ts"], end = event["cat"] == "fetch" ? 0.5 : event["cat"] == "wait" ? 1.1 : 3.0;
      CHECK(std::abs(begin + event["dur"].get<double>() - end) < 1e-9);
      CHECK_EQ(event["args"].value("weights_us", 0.0), end == 3.0 ? 0.25 : 0.0);
      continue;
    }
    CHECK(!event["args"].contains("weights_us"));
    if (event["cat"] == "embed") CHECK_EQ(event["ts"].get<double>(), 1.5);
    if (event["cat"] == "embed") CHECK_EQ(event["dur"].get<double>(), 1.25);
  }
  CHECK_EQ(tasks, 3u);
  CHECK_EQ(waits, 2u);
  CHECK_EQ(fetches, 1u);
  CHECK_THROWS(invalid_argument, "worker 3 task 0", chrome_trace_json(plan, {{3, 0, 0, 1, 2}}));
  CHECK_THROWS(invalid_argument, "ascending times", chrome_trace_json(plan, {{0, 0, 0, 3, 2}}));
  CHECK_THROWS(invalid_argument, "ascending times", chrome_trace_json(plan, {{0, 0, 0, 1, 3, 2, 0}}));
  CHECK_THROWS(invalid_argument, "ascending times", chrome_trace_json(plan, {{0, 0, 0, 1, 3, 0, 3}}));
}

CHECK_MAIN()
