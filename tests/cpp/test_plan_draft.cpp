// Plans with a draft: steps and rounds.
#include "check.h"
#include "plan_mutator.h"
#include "plan_oracle_run.h"
#include "test_configs.h"

#include "plan/accesses.h"
#include "plan/kinds.h"

#include <cmath>
#include <functional>
#include <set>
#include <sstream>

using namespace mimo_rt;
using FuseNorm = PlanOptions::FuseNorm;

namespace {

PlanOptions step_options(uint32_t num_workers, uint32_t max_tokens, FuseNorm fuse = FuseNorm::automatic) {
  PlanOptions options;
  options.num_workers = num_workers;
  options.max_tokens = max_tokens;
  options.max_logit_rows = std::min(max_tokens, 8u);
  options.fuse_norm = fuse;
  options.max_context_rows = max_tokens;
  return options;
}

PlanOptions round_options(uint32_t num_workers, const DraftConfig& draft, FuseNorm fuse = FuseNorm::automatic) {
  PlanOptions options = step_options(num_workers, draft.block_size, fuse);
  options.max_logit_rows = draft.block_size;
  options.max_context_rows = 512;
  options.is_round = true;
  return options;
}

/// Kinds, layers, tiles and edges of a plan; not costs.
std::vector<std::string> task_lines(const Plan& plan) {
  std::vector<std::string> lines;
  std::istringstream text(plan.dump());
  for (std::string line; std::getline(text, line);)
    if (line[0] == 'w') lines.push_back(line.substr(0, line.rfind(" | ")));
  return lines;
}

uint32_t count_tasks(const Plan& plan, const std::function<bool(const Task&)>& wanted) {
  uint32_t count = 0;
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w)) count += wanted(task);
  return count;
}

}  // namespace

TEST_CASE("a round without a draft is a step of one token that reads and writes the block, and verifies") {
  for (const auto& [name, config] : test_configs::tiny_configs())
    for (const uint32_t workers : {1u, 2u, 7u, 132u})
      for (const FuseNorm fuse : {FuseNorm::yes, FuseNorm::no}) {
        PlanOptions options = step_options(workers, 1, fuse);
        options.max_context_rows = 0;
        const Plan step = Plan::build(config, options);
        options.is_round = true;
        const Plan round = Plan::build(config, options);
        (void)round.verify();
        CHECK_EQ(round.num_tasks(), step.num_tasks());
        CHECK_EQ(count_tasks(round, [](const Task& t) { return t.kind == TaskKind::accept; }), 1u);
        CHECK_EQ(round.buffers()[kBlock].cols, 1u);
        CHECK_EQ(round.arena_bytes(), step.arena_bytes());
        CHECK(round.hash() != step.hash());
      }
}

TEST_CASE("every plan of every model with a draft verifies") {
  uint32_t num_plans = 0;
  for (const auto& [name, config] : test_configs::tiny_configs())
    for (uint32_t workers : {1u, 2u, 3u, 7u, 20u, 132u})
      for (uint32_t block : {2u, 3u, 4u, 7u, 8u, 15u, 16u})
        for (FuseNorm fuse : {FuseNorm::yes, FuseNorm::no}) {
          const DraftConfig draft = test_configs::tiny_draft(config, block);
          for (const PlanOptions& options : {round_options(workers, draft, fuse), step_options(workers, block, fuse)}) {
            try {
              Plan::build(config, options, &draft).verify();
              ++num_plans;
            } catch (const Error& error) {
              check::report(__FILE__, __LINE__, name + " workers " + std::to_string(workers) + " block " +
                                                    std::to_string(block) + ": " + error.what());
            }
          }
        }
  CHECK_EQ(num_plans, 5u * 6 * 7 * 2 * 2);
}

TEST_CASE("plans of the 70-layer model with its draft verify") {
  const ModelConfig config = test_configs::mimo_v2_5_pro_fp4();
  const DraftConfig draft = test_configs::mimo_v2_5_pro_draft();
  for (const PlanOptions& options : {round_options(132, draft), step_options(132, 512)}) {
    const VerifyReport report = Plan::build(config, options, &draft).verify();
    std::printf("  %s: %s\n", options.is_round ? "round" : "step", report.to_string().c_str());
    CHECK(report.num_ordered_pairs > 10'000'000);
  }
}

TEST_CASE("kv heads that several workers share are shared in the draft, too") {
  const auto shares_of = [](const Plan& plan, TaskKind kind, uint16_t layer_idx) {
    for (const Task& task : plan.tasks(0))
      if (task.kind == kind && task.layer_idx == layer_idx) return task.tile_end;
    return 0u;
  };
  const ModelConfig config = test_configs::mimo_v2_5_pro_fp4();
  const DraftConfig draft = test_configs::mimo_v2_5_pro_draft();
  PlanOptions options = round_options(132, draft, FuseNorm::no);
  options.attention_split_keys = 256;
  const Plan plan = Plan::build(config, options, &draft);
  plan.verify();
  CHECK_EQ(shares_of(plan, TaskKind::attention, 0), 2 * config.layers[0].num_kv_heads);  // 8 rows: 128 of 132 workers
  CHECK_EQ(shares_of(plan, TaskKind::attention, 1), config.layers[1].num_kv_heads);      // a window of 128
  CHECK_EQ(shares_of(plan, TaskKind::draft_attention, 0), 2 * draft.num_kv_heads);       // one of 1024
  options.num_workers = 127;
  CHECK_EQ(shares_of(Plan::build(config, options, &draft), TaskKind::attention, 0), config.layers[0].num_kv_heads);
  const ModelConfig small = test_configs::tiny();
  const DraftConfig small_draft = test_configs::tiny_draft(small, 4);
  for (const uint32_t workers : {3u, 16u, 40u}) {
    options = round_options(workers, small_draft, FuseNorm::no);
    options.attention_split_keys = 64;
    Plan::build(small, options, &small_draft).verify();
  }
}

TEST_CASE("a draft of a part of the vocabulary has a head of its size; the rest of the round stays as it is") {
  const ModelConfig config = test_configs::tiny();
  DraftConfig draft = test_configs::tiny_draft(config);
  draft.draft_vocab_size = 0;
  const Plan whole = Plan::build(config, round_options(3, draft), &draft);
  CHECK_EQ(whole.shape().draft.vocab_size, 80u);
  for (const uint32_t size : {1u, 16u, 17u, 79u, 80u}) {
    draft.draft_vocab_size = size;
    const Plan part = Plan::build(config, round_options(3, draft), &draft);
    part.verify();
    CHECK_EQ(part.buffers()[kDraftLogits].cols, (size + 15) / 16 * 16);
    CHECK_EQ(part.buffers()[kLogits].cols, 80u);
    CHECK_EQ(part.hash() == whole.hash(), size == 80);
    uint32_t num_tiles = 0;
    for (uint32_t w = 0; w < 3; ++w)
      for (const Task& task : part.tasks(w))
        if (task.kind == TaskKind::draft_lm_head && task.tile_first < task.tile_end)
          num_tiles += (task.tile_end - task.tile_first + task.tile_stride - 1) / task.tile_stride;
    CHECK_EQ(num_tiles, (size + 15) / 16);
  }
}

TEST_CASE("a step with a draft is the step without, after the context and with captures") {
  const ModelConfig config = test_configs::tiny();
  const DraftConfig draft = test_configs::tiny_draft(config);
  PlanOptions options = step_options(3, 4);
  const Plan with = Plan::build(config, options, &draft);
  options.max_context_rows = 0;
  const Plan without = Plan::build(config, options);
  const auto is_context = [](const Task& t) { return scope_of(t.kind) == Scope::context; };
  CHECK_EQ(with.num_tasks(), without.num_tasks() + count_tasks(with, is_context));
  CHECK_EQ(count_tasks(with, is_context), 6u);
  const std::vector<std::string> plain = task_lines(without);
  std::vector<std::string> rest;
  for (std::string line : task_lines(with)) {
    if (line.find(" context_") < line.find(" tiles")) continue;
    if (const size_t at = line.find(" +capture"); at != std::string::npos) line.erase(at, 9);
    rest.push_back(line);
  }
  CHECK_EQ(rest.size(), plain.size());
  uint32_t num_equal = 0;
  for (size_t i = 0; i < plain.size(); ++i)  // after "w0 #12": list positions move
    num_equal += plain[i].substr(plain[i].find(' ', 3)) == rest[i].substr(rest[i].find(' ', 3));
  CHECK_EQ(num_equal, plain.size() - 3);  // the three embed tasks wait for the context instead of the gate
  // Layers 2 (experts) and 0 (dense) are captured, in this order of columns.
  CHECK_EQ(count_tasks(with, [](const Task& t) { return (t.flags & kCapture) != 0; }), 6u);
  CHECK_EQ(capture_index(with.shape(), 2), 0);
  CHECK_EQ(capture_index(with.shape(), 0), 1);
  CHECK_EQ(capture_index(with.shape(), 1), -1);
  CHECK_EQ(count_tasks(without, [](const Task& t) { return (t.flags & kCapture) != 0; }), 0u);
}

TEST_CASE("a round ends with accept and leaves the next anchor") {
  const ModelConfig config = test_configs::tiny();
  const DraftConfig draft = test_configs::tiny_draft(config);
  const Plan plan = Plan::build(config, round_options(3, draft), &draft);
  const Task& last = plan.tasks(0).back();
  CHECK(last.kind == TaskKind::accept);
  CHECK_EQ(last.signal_counter, plan.gate_counter());
  CHECK_EQ(count_tasks(plan, [](const Task& t) { return t.kind == TaskKind::sample; }), 0u);
  CHECK_EQ(count_tasks(plan, [](const Task& t) { return t.kind == TaskKind::embed && t.flags == kFromBlock; }), 3u);
  CHECK_EQ(plan.buffers()[kBlock].cols, 4u);
  CHECK_EQ(plan.buffers()[kDraftLogits].rows, 3u);
  CHECK_EQ(plan.buffers()[kFeatures].cols, 2u * 48);
  CHECK_EQ(plan.buffers()[kContextKv].cols, 2u * 2 * (32 + 16));
  CHECK_EQ(plan.buffers()[kSampled].bytes, 0u);
  bool writes_anchor = false;
  for (const Access& access : task_accesses(plan, last))
    writes_anchor |= access.mode == AccessMode::write && access.buffer == kBlock && access.col_begin == 0;
  CHECK(writes_anchor);
}

// The features of a step may lie in ring rows that the same step fills. Here the context is made in an order that is
// sound in every other way, but after the last capture.
TEST_CASE("shares of a round's tokens end it together; one that is missing or there twice is refused") {
  const ModelConfig config = test_configs::tiny();
  const DraftConfig draft = test_configs::tiny_draft(config);
  PlanOptions options = round_options(3, draft);
  options.sample_by_all = true;
  const Plan plan = Plan::build(config, options, &draft);
  plan.verify();
  CHECK_EQ(plan.counters()[plan.gate_counter()].total, 3u);
  for (uint32_t w = 0; w < 3; ++w) {
    const Task& last = plan.tasks(w).back();
    CHECK(last.kind == TaskKind::accept && last.signal_counter == plan.gate_counter());
    CHECK(last.tile_first == w && last.tile_stride == 3 && last.tile_end == 3);
  }
  const auto refused = [&](const char* needle, const std::function<void(PlanMutator&)>& change) {
    PlanMutator m(plan);
    change(m);
    CHECK_THROWS(plan_invalid, needle, m.finish().verify());
  };
  refused("expected every share once, of 3 shares, got share 1 of 3", [](PlanMutator& m) { m.lists[2].back().tile_first = 1; });
  refused("expected every share once, got none with share 2 of 3", [](PlanMutator& m) {
    m.lists[2].pop_back();
    m.repair_counters();
  });
  refused("tiles: expected", [](PlanMutator& m) { m.lists[1].back().tile_stride = 1; });
  refused("tiles: expected", [](PlanMutator& m) { m.lists[1].back().tile_end = m.lists[1].back().tile_stride = 4; });
}

TEST_CASE("features are read before the step's own captures overwrite them") {
  const ModelConfig config = test_configs::tiny();
  const DraftConfig draft = test_configs::tiny_draft(config);
  for (bool at_end : {false, true}) {
    PlanMutator m(Plan::build(config, step_options(2, 4, FuseNorm::yes), &draft));
    uint32_t last_layer = kNoCounter;
    for (const Task& task : m.lists[1])
      if (task.kind == TaskKind::expert_down && task.layer_idx == 2) last_layer = task.signal_counter;
    for (auto& list : m.lists) {
      CHECK(list[0].kind == TaskKind::context_fc && list[1].kind == TaskKind::context_kv);
      CHECK(list[2].kind == TaskKind::embed && list[2].num_waits == 1);
      if (!at_end) {  // sound: only the embedding goes first
        std::swap(list[2].waits[0], list[0].waits[0]);
        std::swap(list[0], list[2]);
        std::swap(list[1], list[2]);
        list[1].num_waits = 0, list[1].waits[0] = {kNoCounter, 0};
        continue;
      }
      list[2].waits[0] = list[0].waits[0];
      list[0].waits[0] = {last_layer, 2};
      const auto is_head = [](const Task& t) { return t.kind == TaskKind::lm_head; };
      std::rotate(list.begin(), list.begin() + 2, std::find_if(list.begin(), list.end(), is_head));
    }
    const Plan plan = m.finish();
    plan_oracle::Scenario scenario{{4, 3}, 2, 0, {2, 4}};
    scenario.expected = plan_oracle::expected_outputs(plan, true, scenario);
    const bool is_harmless = plan_oracle::find_fault(plan, {scenario}).empty();
    CHECK_EQ(is_harmless, !at_end);
    if (at_end)
      CHECK_THROWS(plan_invalid, "(context_fc) reads 'features' rows 0 step 1, cols [0, 96): expected what an earlier "
                                 "epoch left there", plan.verify());
    else CHECK(plan.verify().num_tasks > 0);
  }
}

// How many rows a round verifies is known with its last draft: the row of the anchor waits for it too.
TEST_CASE("an embedding that does not wait for the drafts is refused, whichever its row") {
  const ModelConfig config = test_configs::tiny();
  const DraftConfig draft = test_configs::tiny_draft(config);
  for (uint32_t worker_idx = 0; worker_idx < draft.block_size; ++worker_idx) {
    PlanMutator m(Plan::build(config, round_options(draft.block_size, draft), &draft));
    auto& list = m.lists[worker_idx];
    const auto embed = std::find_if(list.begin(), list.end(), [](const Task& t) { return t.kind == TaskKind::embed; });
    CHECK(embed->num_waits == 1 && embed->tile_first == worker_idx);
    embed->num_waits = 0, embed->waits[0] = {kNoCounter, 0};
    CHECK_THROWS(plan_invalid, "(embed) reads 'block'", m.finish().verify());
  }
}

// Tasks of draft rows do nothing in a round that does not draft, and rows of context may be any number.
TEST_CASE("rounds are right for every number of context rows, drafting or not") {
  const ModelConfig config = test_configs::tiny();
  const DraftConfig draft = test_configs::tiny_draft(config);
  PlanOptions options = round_options(3, draft);
  options.max_context_rows = 4;
  const Plan plan = Plan::build(config, options, &draft);
  std::vector<plan_oracle::Scenario> scenarios;
  for (uint32_t context = 0; context <= 4; ++context)
    for (uint32_t tokens : {1u, 2u, 4u})
      for (const bool drafts : {true, false})
        if (drafts || tokens == 1) {
          scenarios.push_back({{tokens, 3}, context, 0, {context, 4 - context}, {drafts, true}});
          scenarios.back().expected = plan_oracle::expected_outputs(plan, true, scenarios.back());
        }
  std::set<uint64_t> outputs;
  for (const plan_oracle::Scenario& scenario : scenarios) outputs.insert(scenario.expected);
  CHECK_EQ(scenarios.size(), 20u);
  CHECK_EQ(outputs.size(), 15u);  // every input matters, but for drafts that are not verified (one token)
  CHECK_EQ(plan_oracle::find_fault(plan, scenarios), std::string());
}

/// Sum of the estimates of tasks that `wanted` picks, in GB; one byte takes one ns, and arithmetic never longer.
double estimated_gb(const Plan& plan, const std::function<bool(TaskKind)>& wanted) {
  double ns = 0.0;
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w)) ns += wanted(task.kind) ? task.cost_ns : 0.0;
  return ns / 1e9;
}

// 2,768,316,288 BF16 weights of the draft and 152576 x 6144 of the shared lm_head; the model: 28.60 GB outside of the
// experts, and 59.52 of them per layer for 8 tokens, of 20.05 MB each, in 69 layers. Key and value weights of the draft, 126 MB,
// are read twice: for the context and for the block.
TEST_CASE("the draft's share of a round is what the checkpoint's sizes say") {
  const DraftConfig draft = test_configs::mimo_v2_5_pro_draft();
  PlanOptions options = round_options(8, draft);
  options.bytes_per_ns = 1.0;
  options.max_context_rows = draft.block_size;
  const Plan plan = Plan::build(test_configs::mimo_v2_5_pro_fp4(), options, &draft);
  const auto is_draft = [](TaskKind kind) { return kind >= TaskKind::context_fc && kind < TaskKind::accept; };
  const auto is_cache = [](TaskKind kind) { return kind == TaskKind::attention || kind == TaskKind::draft_attention; };
  const double head = estimated_gb(plan, [](TaskKind kind) { return kind == TaskKind::draft_lm_head; });
  const double weights = estimated_gb(plan, [&](TaskKind kind) { return is_draft(kind) && !is_cache(kind); }) - head;
  const double all = estimated_gb(plan, [&](TaskKind kind) { return !is_cache(kind); });
  std::printf("  draft weights %.3f GB, lm_head %.3f GB, round %.2f GB: share %.2f %%\n", weights, head, all,
              100 * (weights + head) / all);
  CHECK(std::fabs(head / 1.875 - 1) < 0.002);
  CHECK(std::fabs(weights / (5.537 + 0.126) - 1) < 0.002);
  CHECK(std::fabs(all / (7.411 + 0.126 + 110.96) - 1) < 0.01);
}

TEST_CASE("wrong drafts and options are refused by name") {
  const ModelConfig config = test_configs::tiny();
  const DraftConfig good = test_configs::tiny_draft(config);
  const auto with = [&](const std::function<void(DraftConfig&)>& change) {
    DraftConfig draft = good;
    change(draft);
    return Plan::build(config, round_options(2, draft), &draft);
  };
  CHECK(with([](DraftConfig&) {}).num_tasks() > 0);
  CHECK_THROWS(unsupported_shape, "draft hidden_size: expected the target's 48, got 64",
               with([](DraftConfig& d) { d.hidden_size = 64; }));
  CHECK_THROWS(unsupported_shape, "draft target_layer_ids: expected < 3, got 3",
               with([](DraftConfig& d) { d.target_layer_ids = {0, 3}; }));
  CHECK_THROWS(unsupported_shape, "expected distinct layers, got 1 twice",
               with([](DraftConfig& d) { d.target_layer_ids = {1, 0, 1}; }));
  CHECK_THROWS(unsupported_shape, "draft draft_vocab_size: expected 0..80, got 81",
               with([](DraftConfig& d) { d.draft_vocab_size = 81; }));
  CHECK_THROWS(unsupported_shape, "number of target_layer_ids: expected 1..3, got 0",
               with([](DraftConfig& d) { d.target_layer_ids.clear(); }));
  CHECK_THROWS(unsupported_shape, "draft block_size: expected 2..16, got 17",
               with([](DraftConfig& d) { d.block_size = 17; }));
  CHECK_THROWS(unsupported_shape, "draft block_size: expected 2..16, got 1",
               with([](DraftConfig& d) { d.block_size = 1; }));
  CHECK_THROWS(unsupported_shape, "expected multiples of 16, got 24 and 16",
               with([](DraftConfig& d) { d.qk_head_dim = 24; }));
  CHECK_THROWS(unsupported_shape, "draft num_q_heads: expected a multiple of num_kv_heads 3, got 4",
               with([](DraftConfig& d) { d.num_kv_heads = 3; }));
  CHECK_THROWS(unsupported_shape, "draft window_tokens: expected 2 entries, got 1",
               with([](DraftConfig& d) { d.window_tokens.resize(1); }));
  CHECK_THROWS(unsupported_shape, "draft num_layers: expected 1..256, got 0",
               with([](DraftConfig& d) { d.num_layers = 0; }));
  CHECK_THROWS(unsupported_shape, "width of all keys and values", with([](DraftConfig& d) {
                 d.num_layers = 256, d.window_tokens.assign(256, 0);
                 d.num_q_heads = d.num_kv_heads = 65535;
               }));
  const auto options = [&](const std::function<void(PlanOptions&)>& change, const DraftConfig* draft) {
    PlanOptions changed = round_options(2, good);
    change(changed);
    return Plan::build(config, changed, draft);
  };
  CHECK_THROWS(invalid_argument, "expected the block size 4, got 5 and 4",
               options([](PlanOptions& o) { o.max_tokens = 5; }, &good));
  CHECK_THROWS(invalid_argument, "expected the block size 4, got 4 and 3",
               options([](PlanOptions& o) { o.max_logit_rows = 3; }, &good));
  CHECK_THROWS(invalid_argument, "max_context_rows: expected 1..4096, got 0",
               options([](PlanOptions& o) { o.max_context_rows = 0; }, &good));
  CHECK_THROWS(invalid_argument, "max_context_rows: expected 1..4096, got 4097",
               options([](PlanOptions& o) { o.max_context_rows = 4097; }, &good));
  CHECK_THROWS(invalid_argument, "max_context_rows: expected 0 without a draft, got 512",
               options([](PlanOptions&) {}, nullptr));
  CHECK_THROWS(invalid_argument, "expected the block size 4, got 4 and 3",
               options([](PlanOptions& o) { o.max_context_rows = 0, o.max_logit_rows = 3; }, nullptr));
  CHECK_THROWS(invalid_argument, "max_tokens of a round: expected 1..16, got 17",
               options([](PlanOptions& o) { o.max_context_rows = 0, o.max_tokens = o.max_logit_rows = 17; }, nullptr));
}

CHECK_MAIN()
