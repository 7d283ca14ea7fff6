// Whole steps of a model with all features on the emulated GPU (or a real one), from the plan that the CPU runs:
// against the exact model, against the CPU, against themselves; and what happens when an
// edge of the plan is missing.
#include "device_step_fixture.h"
#include "missing_edge.h"

#include <algorithm>
#include <functional>
#include <utility>

using namespace mimo_rt;
using namespace fixture;

namespace {

const DeviceModel& model() {
  static const DeviceModel model(device_config());
  return model;
}

Plan make_plan(uint32_t num_workers, uint32_t max_tokens, bool tag_edges = true) {
  PlanOptions options = device_plan_options(num_workers, max_tokens, max_tokens);
  options.tag_edges = tag_edges;
  return Plan::build(model().config, options);
}
uint32_t num_tag_edges(const Plan& plan) {
  return static_cast<uint32_t>(std::ranges::count(plan.counters(), CounterInfo::Kind::tag, &CounterInfo::kind));
}

/// Logits [tokens, vocab] of a sequence that is fed in chunks of the plan's size.
std::vector<float> run_device(StepRunner& engine, const std::vector<int32_t>& tokens,
                              uint32_t seq = 0) {
  const uint32_t vocab = model().config.vocab_size, chunk = engine.plan.options().max_tokens;
  std::vector<float> logits;
  for (uint32_t begin = 0; begin < tokens.size(); begin += chunk) {
    const StepRows rows(tokens, seq, begin,
                        std::min(begin + chunk, static_cast<uint32_t>(tokens.size())));
    if (!engine.run(rows.input)) {
      check::report(__FILE__, __LINE__, engine.error);
      return {};
    }
    for (uint32_t r = 0; r < rows.input.num_tokens; ++r)
      logits.insert(logits.end(), engine.logits(r), engine.logits(r) + vocab);
  }
  return logits;
}
std::vector<float> run_device(uint32_t num_workers, uint32_t chunk,
                              const std::vector<int32_t>& tokens, uint64_t seed = 0, bool tag_edges = true) {
  StepRunner engine(model(), make_plan(num_workers, chunk, tag_edges), 1, seed);
  return run_device(engine, tokens);
}

std::vector<float> run_host(const Weights& weights, Executor& executor, const Plan& plan,
                            const std::vector<int32_t>& tokens) {
  KvCache cache(weights.config(), {.max_context = 128, .max_step_tokens = 8, .num_seqs = 1});
  return feed(executor, plan, cache, tokens, 8, weights.config().vocab_size);
}
std::vector<float> run_ref(bool is_exact, const std::vector<int32_t>& tokens) {
  const Plan plan = make_plan(3, 8);
  const auto executor = make_ref_executor(*model().host, nullptr, {&plan}, {}, is_exact);
  return run_host(*model().host, *executor, plan, tokens);
}
std::vector<float> run_cpu(const std::vector<int32_t>& tokens) {
  const Plan plan = make_plan(3, 8);
  ExecutorOptions options;
  options.num_workers = 3;
  const auto executor = make_cpu_executor(*model().host, nullptr, {&plan}, "cpu-generic", options);
  return run_host(*model().host, *executor, plan, tokens);
}

}  // namespace

// As for the CPU executor (test_executors.cpp): the same roundings, so the same noise around the
// exact model, at most twice as large.
TEST_CASE("logits are as close to the exact model as the rounding points allow, and agree with the CPU's") {
  const std::vector<int32_t> tokens = random_tokens(model().config, 75, 3);
  const std::vector<float> exact = run_ref(true, tokens);
  const uint32_t vocab = model().config.vocab_size;
  const double noise = distance_of_most_rows(run_ref(false, tokens), exact, vocab);
  CHECK(noise > 0.0 && noise < 0.05);
  const std::vector<float> device = run_device(3, 8, tokens), cpu = run_cpu(tokens);
  const double distance = distance_of_most_rows(device, exact, vocab);
  std::printf("  noise %.3e, CPU %.3e, device %.3e\n", noise, distance_of_most_rows(cpu, exact, vocab), distance);
  CHECK(distance > 0.0 && distance <= 2 * noise);
  CHECK(agree(device, cpu, vocab));
  std::vector<float> wrong = device;  // control: the rows that see a second page of keys
  std::copy_n(device.begin(), 11 * vocab, wrong.begin() + 64 * vocab);
  CHECK(distance_of_most_rows(wrong, exact, vocab) > 2 * noise);
  CHECK(!agree(wrong, cpu, vocab));
}

struct Variant {
  std::string name;
  ModelConfig config;
  DType router = DType::f32;
};

/// What device_config() has not.
std::vector<Variant> variants() {
  std::vector<Variant> all;
  const auto add = [&](const std::string& name, auto change) {
    all.push_back({name, device_config()});
    change(all.back());
  };
  add("as it is", [](Variant&) {});
  add("tied head", [](Variant& v) { v.config.tie_word_embeddings = true; });
  add("split qkv", [](Variant& v) { v.config.qkv_layout = QkvLayout::split; });
  add("BF16 linears", [](Variant& v) { v.config.linear_format = WeightFormat::plain; });
  add("BF16 router", [](Variant& v) { v.router = DType::bf16; });
  add("sinks on full layers", [](Variant& v) {
    for (LayerConfig& layer : v.config.layers) layer.has_sink = true;
  });
  add("all dense", [](Variant& v) {
    for (LayerConfig& layer : v.config.layers) layer.is_moe = false;
    v.config.num_experts = v.config.experts_per_token = v.config.expert_intermediate_size = 0;
  });
  return all;
}

TEST_CASE("every row is as close to the exact model as the rounding points allow, in every configuration") {
  std::vector<float> last;
  for (const auto& [name, config, router] : variants()) {
    const DeviceModel variant(config, Routing::clear, router);
    const Plan plan = Plan::build(config, device_plan_options(2, 8, 8));
    const std::vector<int32_t> tokens = random_tokens(config, 40, 3);  // more than a window
    const auto reference = [&](bool is_exact) {
      const auto executor = make_ref_executor(*variant.host, nullptr, {&plan}, {}, is_exact);
      return run_host(*variant.host, *executor, plan, tokens);
    };
    StepRunner engine(variant, plan);
    const std::vector<float> device = run_device(engine, tokens), exact = reference(true);
    const uint32_t vocab = config.vocab_size;
    const double noise = row_distances(reference(false), exact, vocab).back();
    const double distance = row_distances(device, exact, vocab).back();
    std::printf("  %s: noise %.3e, device %.3e\n", name.c_str(), noise, distance);
    CHECK(noise > 0.0 && noise < 0.05);
    CHECK(distance > 0.0 && distance <= 2 * noise);
    CHECK(last.empty() || row_distances(device, last, vocab).back() > 2 * noise);  // control: another configuration
    last = device;
  }
}

TEST_CASE("another window, value scale or factor of the experts is seen") {
  const std::vector<int32_t> tokens = random_tokens(model().config, 32, 3);
  const std::vector<float> right = run_device(2, 8, tokens);
  const auto run_other = [&](auto change) {
    ModelConfig config = model().config;
    change(config);
    DeviceModel other(config);
    StepRunner engine(other, make_plan(2, 8));
    return run_device(engine, tokens);
  };
  CHECK(bit_equal(run_other([](ModelConfig&) {}), right));
  const auto is_seen = [&](auto change) {
    const std::vector<float> logits = run_other(change);
    return relative_distance(logits, right) > 0.1 && !agree(logits, right, model().config.vocab_size);
  };
  CHECK(is_seen([](ModelConfig& c) { c.layers[1].window_tokens -= 1; }));
  CHECK(is_seen([](ModelConfig& c) { c.value_scale = 1.0; }));
  CHECK(is_seen([](ModelConfig& c) { c.routed_scaling_factor = 1.0; }));
  CHECK(is_seen([](ModelConfig& c) {
    for (LayerConfig& layer : c.layers) layer.rope_theta = 10;
  }));
}

TEST_CASE("the bits are the same for any chunk, any number of blocks, in every schedule") {
  const std::vector<int32_t> tokens = random_tokens(model().config, 11, 5);
  const std::vector<float> alone = run_device(1, 1, tokens);
  CHECK_EQ(alone.size(), 11 * model().config.vocab_size);
  CHECK(bit_equal(alone, run_device(2, 8, tokens)));
  CHECK(bit_equal(alone, run_device(5, 3, tokens)));
  for (uint64_t seed = 1; seed <= 4; ++seed) CHECK(bit_equal(alone, run_device(3, 8, tokens, seed)));
}

/// A step of a prompt. Logits are wanted of some rows.
void check_long_step(StepRunner& engine, const std::vector<int32_t>& tokens, uint32_t begin, uint32_t end,
                     const std::vector<float>& expected) {
  const uint32_t vocab = model().config.vocab_size, num_rows = end - begin;
  StepRows rows(tokens, 0, begin, end);
  rows.logit_rows = {0, 7, 8};
  if (num_rows > 18) rows.logit_rows.insert(rows.logit_rows.end(), {num_rows / 2, num_rows - 1});
  rows.input.logit_rows = rows.logit_rows.data();
  rows.input.num_logit_rows = static_cast<uint32_t>(rows.logit_rows.size());
  if (!engine.run(rows.input)) return check::report(__FILE__, __LINE__, engine.error);
  for (uint32_t i = 0; i < rows.logit_rows.size(); ++i) {
    const float* of_row = expected.data() + (begin + rows.logit_rows[i]) * vocab;
    CHECK(!std::memcmp(engine.logits(i), of_row, vocab * sizeof(float)));
  }
}

TEST_CASE("the bits are the same in steps of up to 64 rows") {
  const std::vector<int32_t> tokens = random_tokens(model().config, 117, 5);
  const std::vector<float> expected = run_device(3, 8, tokens);
  for (const bool tag_edges : {true, false}) {
    PlanOptions options = device_plan_options(3, cuda::kMaxStepTokens, 8);
    options.tag_edges = tag_edges;
    StepRunner engine(model(), Plan::build(model().config, options), 1, tag_edges);
    CHECK_EQ(num_tag_edges(engine.plan), tag_edges ? 3u : 0u);
    uint32_t begin = 0;
    for (const uint32_t end : {64u, 97u, 106u, 117u})
      check_long_step(engine, tokens, std::exchange(begin, end), end, expected);
  }
}

TEST_CASE("the bits are the same when blocks share the keys of a head") {
  const std::vector<int32_t> tokens = random_tokens(model().config, 68, 5);  // two splits
  const std::vector<float> expected = run_device(1, 8, tokens);
  const uint32_t vocab = model().config.vocab_size;
  const Plan prompt = make_plan(4, 8), plan = make_plan(4, 1);
  const Task& attention = *std::ranges::find(plan.tasks(0), TaskKind::attention, &Task::kind);
  CHECK_EQ(attention.tile_end, 2 * model().config.layers[attention.layer_idx].num_kv_heads);
  const auto executor =
      cuda::make_cuda_executor(open_test_device(1), model().pack(), model().config, {&prompt, &plan}, {});
  KvCache cache(model().config, {StepRunner::kMaxContext, 8, 1});
  feed(*executor, prompt, cache, {tokens.begin(), tokens.begin() + 64}, 8, vocab);
  cache.reserve(0, 68);
  for (uint32_t pos = 64; pos < 68; ++pos) {
    const StepRows row(tokens, 0, pos, pos + 1);
    StepOutput output;
    executor->run(plan, cache, row.input, output);
    CHECK(!std::memcmp(output.logits, expected.data() + pos * vocab, vocab * sizeof(float)));
  }
}

TEST_CASE("the bits are the same with the routes by tag edges and by counters") {
  const std::vector<int32_t> tokens = random_tokens(model().config, 11, 5);
  CHECK_EQ(num_tag_edges(make_plan(3, 4)), 3u);  // all MoE layers
  CHECK_EQ(num_tag_edges(make_plan(3, 4, false)), 0u);
  const std::vector<float> by_counters = run_device(3, 4, tokens, 0, false);
  for (uint64_t seed = 0; seed <= 2; ++seed) CHECK(bit_equal(by_counters, run_device(3, 4, tokens, seed)));
}

TEST_CASE("rows of a step may belong to several sequences, and need not have logits") {
  const std::vector<int32_t> a = random_tokens(model().config, 6, 7);
  const std::vector<int32_t> b = random_tokens(model().config, 6, 8);
  const uint32_t vocab = model().config.vocab_size;
  StepRunner together(model(), make_plan(3, 4), 2);
  std::vector<float> logits;
  for (uint32_t begin = 0; begin < 6; begin += 2) {
    const std::vector<int32_t> ids = {b[begin], b[begin + 1], a[begin], a[begin + 1]};
    const std::vector<uint32_t> seqs = {1, 1, 0, 0}, positions = {begin, begin + 1, begin, begin + 1};
    const std::vector<uint32_t> wanted = {0, 3};
    StepInput input;
    input.num_tokens = 4;
    input.token_ids = ids.data();
    input.seq_idx = seqs.data();
    input.positions = positions.data();
    input.num_logit_rows = begin == 4 ? 2 : 0;
    input.logit_rows = wanted.data();
    CHECK(together.run(input));
  }
  const std::vector<float> alone_b = run_device(2, 1, {b.begin(), b.begin() + 5});
  const std::vector<float> alone_a = run_device(2, 1, a);
  CHECK(!std::memcmp(together.logits(0), alone_b.data() + 4 * vocab, vocab * 4));
  CHECK(!std::memcmp(together.logits(1), alone_a.data() + 5 * vocab, vocab * 4));
}

TEST_CASE("tokens are drawn as the CPU draws them from the same logits") {
  const std::vector<int32_t> tokens = random_tokens(model().config, 7, 9);
  const std::vector<SamplingParams> wanted = {
      {.temperature = 0.0f},
      {.seed = 3},
      {.sample_top_k = 20, .seed = 4},
      {.sample_top_p = 0.8f, .min_p = 0.01f, .seed = 5},
      {.temperature = 0.5f, .repetition_penalty = 1.3f, .seed = 6},
      {.temperature = 0.0f, .logit_bias = {{5, 30.0f}, {9, -3.0f}}},
      {.temperature = 0.7f, .seed = 8, .num_logprobs = 4, .want_logprob = true}};
  const uint32_t vocab = model().config.vocab_size;
  std::vector<uint32_t> counts(vocab);
  for (const int32_t id : tokens) ++counts[static_cast<size_t>(id)];
  const std::vector<int32_t> masked = {3, 77, 202};
  std::vector<std::max_align_t> scratch(sampler_scratch_bytes(vocab) / sizeof(std::max_align_t) + 1);
  std::vector<SampleRequest> requests(wanted.size());
  for (uint32_t r = 0; r < requests.size(); ++r) {
    requests[r].params = &wanted[r];
    requests[r].sequence_id = 42;
    requests[r].position = r + 1;
    requests[r].scratch = scratch.data();
    if (wanted[r].repetition_penalty != 1.0f) requests[r].token_counts = counts.data();
    if (r % 2 == 0) {
      requests[r].masked_ids = masked.data();
      requests[r].num_masked_ids = static_cast<uint32_t>(masked.size());
    }
  }
  StepRunner engine(model(), make_plan(3, 7));
  StepRows rows(tokens, 0, 0, static_cast<uint32_t>(wanted.size()));
  rows.input.sample = requests.data();
  CHECK(engine.run(rows.input));
  for (uint32_t r = 0; r < requests.size(); ++r) {
    SampleResult result;
    sample_token({engine.logits(r), vocab}, requests[r], result);
    const SampleResult& drawn = engine.sampled(r);
    CHECK_EQ(drawn.token_id, result.token_id);
    CHECK_EQ(drawn.logprob, result.logprob);
    CHECK_EQ(drawn.num_alternatives, result.num_alternatives);
    for (uint32_t i = 0; i < result.num_alternatives; ++i)
      CHECK_EQ(drawn.alternatives[i].token_id, result.alternatives[i].token_id);
  }
}

#if !defined(MIMO_RT_TEST_ON_GPU)  // what it reads may be anything
void check_missing_edges(const std::function<bool(const Task&)>& wanted, uint32_t num_tags_wanted) {
  const std::vector<int32_t> tokens = random_tokens(model().config, 5, 11);
  const std::vector<float> right = run_device(3, 5, tokens);
  const StepRows rows(tokens, 0, 0, 5);
  uint32_t num_refused = 0, num_wrong = 0, num_hangs = 0, num_tags = 0;
  for (uint32_t seed = 1; seed <= 16; ++seed) {
    const MissingEdge missing = drop_edge(make_plan(3, 5), seed, wanted);
    StepRunner engine(model(), missing.plan, 1, seed, kHangTimeoutMs);
    const bool has_ended = engine.run(rows.input);
    // Leaves cleanly, or the emulation sees what was not ordered: a copy of bytes that are being written, two routes.
    CHECK(has_ended || engine.code == ErrorCode::timeout || engine.error.starts_with("[emulated]"));
    const bool is_right = has_ended && !std::memcmp(engine.logits(4), right.data() + 4 * model().config.vocab_size,
                                                    model().config.vocab_size * 4);
    num_refused += is_refused(missing.plan);
    num_hangs += !has_ended;
    num_wrong += has_ended && !is_right;
    num_tags += missing.is_tag;
    CHECK(!missing.is_tag || is_refused(missing.plan));
    if (!is_right && !is_refused(missing.plan))
      check::report(__FILE__, __LINE__, missing.name + ": accepted, and the result is wrong");
    CHECK(is_right || is_refused(missing.plan));
  }
  std::printf("  of 16, %u of them tag edges: verifier refuses %u; emulation hangs in %u, is wrong in %u\n", num_tags,
              num_refused, num_hangs, num_wrong);
  CHECK(num_refused >= 12 && num_hangs != 0 && num_wrong != 0 && num_tags >= num_tags_wanted);
}

TEST_CASE("an edge that is missing is refused by the verifier or does no harm; the emulation sees most") {
  check_missing_edges([](const Task&) { return true; }, 0);
}

TEST_CASE("a tag edge that is missing is refused by the verifier; the emulation sees most") {
  const auto is_on_tag = [](const Task& task) {
    return task.kind >= TaskKind::select_experts && task.kind <= TaskKind::expert_down;
  };
  check_missing_edges(is_on_tag, 4);
}

/// Worker 2 has nothing but expert tasks and its part of the end, its others are worker 1's. It polls for the route first,
/// so that its waiter comes to the next layer's while it reads this one's.
Plan plan_with_experts_alone() {
  PlanMutator m(make_plan(3, 4));
  std::vector<Task> own;
  const auto stays = [&](const Task& task) {
    return m.tag_wait(task) || task.kind == TaskKind::lm_head || task.kind == TaskKind::sample;
  };
  for (const Task& task : m.lists[2]) (stays(task) ? own : m.lists[1]).push_back(task);
  // Phases have them in order, but for the last, which signals the gate, 0.
  std::ranges::stable_sort(m.lists[1], {}, [](const Task& task) { return task.signal_counter - 1; });
  for (Task& task : own)
    if (task.num_waits == 2) std::swap(task.waits[0], task.waits[1]);
  m.lists[2] = own;
  return m.finish();
}

TEST_CASE("a block that is soon at the next route lets the readers of the last one end; that it does not is found") {
  const std::vector<int32_t> tokens = random_tokens(model().config, 4, 13);
  const Plan plan = plan_with_experts_alone();
  plan.verify();
  CHECK_EQ(plan.tasks(2).size(), 8u);
  CHECK_EQ(plan.num_tasks(), make_plan(3, 4).num_tasks());
  const std::vector<float> right = run_device(3, 4, tokens, 0, false);
  const auto is_right = [&](uint64_t seed, bool overwrites_routes) {
    const auto device = open_test_device(seed);
    device->overwrites_routes = overwrites_routes;
    StepRunner engine(model(), plan, 1, device, overwrites_routes ? kHangTimeoutMs : 10'000);
    const StepRows rows(tokens, 0, 0, 4);
    if (!engine.run(rows.input)) {
      if (!overwrites_routes) check::report(__FILE__, __LINE__, engine.error);
      return false;
    }
    const uint32_t vocab = model().config.vocab_size;
    return !std::memcmp(engine.logits(3), right.data() + 3 * vocab, vocab * sizeof(float));
  };
  uint32_t num_found = 0;
  for (uint64_t seed = 0; seed <= 4; ++seed) {
    CHECK(is_right(seed, false));
    num_found += !is_right(seed, true);
  }
  std::printf("  found %u of 5\n", num_found);
  CHECK(num_found != 0);
}
#endif

TEST_CASE("plans that the kernel does not run are refused") {
  const DeviceModel& m = model();
  const CudaWeights weights = m.pack();
  const cuda::KvLayout kv(m.config.layers, {128, 64, 1});
  const auto refused = [&](const char* needle, const Plan& plan) {
    CHECK_THROWS(unsupported_shape, needle, cuda::DevicePlan(plan, m.config, weights, nullptr, kv));
  };
  PlanOptions of_heads = device_plan_options(2, 4, 4), fused = of_heads;
  of_heads.attention_split_keys = 0;
  fused.fuse_norm = PlanOptions::FuseNorm::yes;
  refused("attention_split_keys: expected a multiple of 64, got 0", Plan::build(m.config, of_heads));
  refused("expected norms of their own", Plan::build(m.config, fused));
  for (const bool in_all_tasks : {true, false}) {
    PlanMutator uneven(make_plan(2, 4));
    for (auto& list : uneven.lists)
      for (Task& task : list)
        if (task.kind == TaskKind::attention && (in_all_tasks || &list == &uneven.lists[1]))
          task.tile_end = in_all_tasks ? 3 : 4;
    refused(in_all_tasks ? "the same in all tasks of a layer, got 3 shares of 2 kv heads" : "got 4 shares of 2 kv heads",
            uneven.finish());
  }
  refused("max_tokens: expected at most 64, got 65", make_plan(2, 65));
  const DraftConfig draft = test_configs::make_draft(m.config, {4, 2, 32, 16, 8}, 2, 4, 16, {0, 3});
  PlanOptions options = device_plan_options(2, 4, 4);
  options.max_context_rows = 65;
  refused("max_context_rows: expected at most 64, got 65", Plan::build(m.config, options, &draft));
  DraftConfig wide = draft;
  wide.block_size = 9;
  options.max_context_rows = 8;
  refused("block_size: expected at most 8, got 9", Plan::build(m.config, options, &wide));
  PlanMutator strided(make_plan(2, 4));
  for (auto& list : strided.lists)
    for (Task& task : list)
      if (task.kind == TaskKind::lm_head) task.tile_stride = 2;
  refused("lm_head: expected neighbouring tiles, got stride 2", strided.finish());
  const Plan plan = make_plan(2, 4);
  const cuda::DevicePlan device_plan(plan, m.config, weights, nullptr, kv);
  for (const uint32_t num_tokens : {0u, 5u})
    CHECK_THROWS(invalid_argument, "num_tokens: expected 1..4, got " + std::to_string(num_tokens),
                 device_plan.tables({}, num_tokens, 0, false));
  CHECK_THROWS(invalid_argument, "num_logit_rows: expected at most 4, got 5", device_plan.tables({}, 1, 5, false));
  CHECK_THROWS(invalid_argument, "max_context: expected > 0",
               cuda::KvLayout(m.config.layers, {0, 1, 1}));
  CHECK_THROWS(capacity, "pages of all sequences",
               cuda::KvLayout(m.config.layers, {1u << 30, 1, 4096}));
}

CHECK_MAIN()
