// The draft on the emulated GPU (or a real one): what steps capture and make of it, and a round's draft, against the
// exact model, against themselves in other divisions, and against the CPU's choice of tokens.
#include "device_draft_fixture.h"
#include "draft_oracle.h"
#include "missing_edge.h"

#include "check.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

constexpr uint32_t kPromptTokens = 27;  // past the windows, and more than three chunks
constexpr int32_t kAnchor = 7;

const DeviceDraft& model() {
  static const DeviceDraft model(device_draft_config(device_config()));
  return model;
}
std::vector<int32_t> prompt() { return random_tokens(device_config(), kPromptTokens, 3); }

/// What a round's draft computes before it samples, and what it was made of.
struct Drafted {
  std::vector<float> x, logits, features, kv;
  std::vector<int32_t> block;
};

std::vector<float> as_floats(const std::vector<bf16_t>& values) {
  std::vector<float> out;
  for (const bf16_t value : values) out.push_back(bf16_to_f32(value));
  return out;
}

/// The last rows that the block may see, of a layer.
uint32_t first_visible(const DraftConfig& config, uint32_t layer) {
  const uint32_t window = config.window_tokens[layer];
  return window ? kPromptTokens - window + 1 : 0;
}

Drafted draft_on_device(const DeviceDraft& model, uint32_t num_workers, uint32_t chunk, uint64_t seed = 0,
                        const std::function<Plan(const Plan&)>& change_round = {}) {
  DeviceDraftRun run(model, num_workers, chunk, {.seed = seed, .change_round = change_round});
  run.feed(prompt());
  Drafted out;
  out.block = run.draft(kAnchor);
  out.logits = run.draft_logits();
  out.x = as_floats(run.rows<bf16_t>(kDraftX, model.config.block_size, model.config.hidden_size));
  out.features = as_floats(run.features(0, kPromptTokens));
  for (uint32_t l = 0; l < model.config.num_layers; ++l) {
    const std::vector<float> rows = as_floats(run.kv(l, first_visible(model.config, l), kPromptTokens));
    out.kv.insert(out.kv.end(), rows.begin(), rows.end());
  }
  return out;
}

/// The same on the host, where norms are fused.
Drafted draft_on_host(const std::string& backend) {
  DraftRun run(model().host->weights, model().host->draft, {.backend = backend, .max_context = 128});
  run.feed(prompt());
  run.begin_rounds(kAnchor);
  run.state->max_rounds = 1;
  run.state->begin();
  run.run_rounds();
  const DraftConfig& config = run.draft_config;
  const auto* x = reinterpret_cast<const bf16_t*>(run.executor->buffer_data(run.round_plan, kDraftX));
  Drafted out;
  out.x = as_floats({x, x + config.block_size * config.hidden_size});
  out.logits = run.draft_logits();
  out.features = as_floats(run.features(0, kPromptTokens));
  for (uint32_t l = 0; l < config.num_layers; ++l)
    for (uint32_t pos = first_visible(config, l); pos < kPromptTokens; ++pos)
      for (const bool is_value : {false, true})
        for (uint32_t head = 0; head < config.num_kv_heads; ++head) {
          const uint32_t layer = run.config.num_layers + l;
          const bf16_t* row = is_value ? run.cache.v_row(layer, 0, head, pos) : run.cache.k_row(layer, 0, head, pos);
          const std::vector<float> values = as_floats({row, row + (is_value ? config.v_head_dim : config.qk_head_dim)});
          out.kv.insert(out.kv.end(), values.begin(), values.end());
        }
  return out;
}

/// The same by the formulas.
Drafted draft_by_formula() {
  DraftOracle oracle(*model().host);
  Drafted out;
  const auto add = [](std::vector<float>& to, const Vector& values) {
    to.insert(to.end(), values.begin(), values.end());
  };
  for (const Vector& features : exact_features(*model().host, prompt())) {
    oracle.add_context(features);
    add(out.features, features);
  }
  for (const Vector& row : oracle.logits(kAnchor)) add(out.logits, row);
  for (const Vector& row : oracle.draft_x) add(out.x, row);
  for (uint32_t l = 0; l < model().config.num_layers; ++l)
    for (uint32_t pos = first_visible(model().config, l); pos < kPromptTokens; ++pos)
      add(out.kv, oracle.context_kv(l, pos));
  return out;
}

bool is_same(const Drafted& a, const Drafted& b) {
  return bit_equal(a.x, b.x) && bit_equal(a.logits, b.logits) && bit_equal(a.features, b.features) &&
         bit_equal(a.kv, b.kv) && a.block == b.block;
}

}  // namespace

// As for whole steps (test_cuda_step.cpp): the same roundings, so the same noise around the exact model, at most twice
// as large.
TEST_CASE("the draft is as close to the exact model as the rounding points allow") {
  const Drafted exact = draft_by_formula(), rounded = draft_on_host("ref");
  const Drafted cpu = draft_on_host("cpu-generic"), device = draft_on_device(model(), 3, 8);
  const auto check_buffer = [&](const char* name, std::vector<float> Drafted::*buffer) {
    const double noise = relative_distance(rounded.*buffer, exact.*buffer);
    const double found = relative_distance(device.*buffer, exact.*buffer);
    std::printf("  %s: noise %.3e, CPU %.3e, device %.3e\n", name, noise,
                relative_distance(cpu.*buffer, exact.*buffer), found);
    CHECK(noise > 0.0 && noise < 0.1);
    CHECK(found > 0.0 && found <= 2 * noise);
  };
  check_buffer("draft_x", &Drafted::x);
  check_buffer("draft_logits", &Drafted::logits);
  check_buffer("features", &Drafted::features);
  check_buffer("context kv", &Drafted::kv);
}

TEST_CASE("the comparison sees every wrong setting of a draft") {
  const std::vector<float> right = draft_on_device(model(), 2, 8).logits;
  const auto distance = [&](auto change) {
    DeviceDraft other(model().config);
    change(other.config);
    return relative_distance(draft_on_device(other, 2, 8).logits, right);
  };
  CHECK_EQ(distance([](DraftConfig&) {}), 0.0);
  CHECK(distance([](DraftConfig& c) { c.window_tokens[0] -= 1; }) > 1e-3);
  CHECK(distance([](DraftConfig& c) { c.window_tokens[2] += 1; }) > 1e-3);
  CHECK(distance([](DraftConfig& c) { c.value_scale = 1.0; }) > 0.05);
  CHECK(distance([](DraftConfig& c) { c.rope_theta = 100; }) > 0.02);
  CHECK(distance([](DraftConfig& c) { c.rotary_dim = 32; }) > 0.02);
  CHECK(distance([](DraftConfig& c) { c.rms_norm_eps = 0.3; }) > 0.02);
  CHECK(distance([](DraftConfig& c) { std::swap(c.target_layer_ids[0], c.target_layer_ids[2]); }) > 0.05);
}

TEST_CASE("the bits are the same for any chunk, any number of blocks, in every schedule") {
  const Drafted alone = draft_on_device(model(), 1, 1);
  CHECK(is_same(alone, draft_on_device(model(), 2, 8)));
  CHECK(is_same(alone, draft_on_device(model(), 7, 3)));
  for (uint64_t seed = 1; seed <= 3; ++seed) CHECK(is_same(alone, draft_on_device(model(), 3, 8, seed)));
  const Drafted changed = draft_on_device(model(), 2, 8, 0, [](const Plan& plan) {  // control
    PlanMutator mutator(plan);
    for (auto& list : mutator.lists)
      for (Task& task : list)
        if (task.kind == TaskKind::draft_norm && task.layer_idx == 1) task.flags &= static_cast<uint16_t>(~kMlpNorm);
    return mutator.finish();
  });
  CHECK(bit_equal(changed.features, alone.features) && bit_equal(changed.kv, alone.kv));
  CHECK(!bit_equal(changed.logits, alone.logits));
}

#if !defined(MIMO_RT_TEST_ON_GPU)  // what it reads may be anything
TEST_CASE("an edge of the draft that is missing is refused by the verifier or does no harm; the emulation sees most") {
  const auto is_draft = [](const Task& task) {
    return task.kind >= TaskKind::context_fc && task.kind < TaskKind::accept;
  };
  const auto drafted = [&](DeviceDraftRun& run) {
    run.feed(prompt());
    const std::vector<int32_t> block = run.draft(kAnchor);
    return std::pair(block, run.draft_logits());
  };
  DeviceDraftRun sound(model(), 3, 8);
  const auto right = drafted(sound);
  uint32_t num_refused = 0, num_wrong = 0, num_hangs = 0;
  for (uint32_t seed = 1; seed <= 16; ++seed) {
    const MissingEdge missing = drop_edge(sound.whole_round_plan, seed, is_draft);
    const auto drop = [&](const Plan& plan) { return drop_edge(plan, seed, is_draft).plan; };
    DeviceDraftRun run(model(), 3, 8, {.seed = seed, .change_round = drop});
    run.timeout_ms = kHangTimeoutMs;
    bool is_right = false;
    try {
      is_right = drafted(run) == right;
      num_wrong += !is_right;
    } catch (const Error& error) {
      ++num_hangs;
      // Leaves cleanly, or the emulation sees what was not ordered.
      CHECK(error.code() == ErrorCode::timeout || std::string_view(error.what()).starts_with("[emulated]"));
    }
    num_refused += is_refused(missing.plan);
    if (!is_right && !is_refused(missing.plan))
      check::report(__FILE__, __LINE__, missing.name + ": accepted, and the result is wrong");
  }
  std::printf("  of 16: verifier refuses %u; emulation hangs in %u, is wrong in %u\n", num_refused, num_hangs,
              num_wrong);
  CHECK(num_refused >= 12 && num_hangs != 0 && num_wrong != 0);
}
#endif

TEST_CASE("what a layer leaves of a row is captured as it is") {
  DeviceDraftRun run(model(), 3, 8);
  run.feed(random_tokens(run.config, 8, 3));
  const auto* x = reinterpret_cast<const bf16_t*>(run.executor->buffer_data(run.step_plan, kX));
  const uint32_t hidden = run.config.hidden_size, width = 3 * hidden;
  const std::vector<bf16_t> features = run.features(0, 8);
  for (uint32_t r = 0; r < 8; ++r) {  // the last layer is the third that is captured
    CHECK(!std::memcmp(&features[r * width + 2 * hidden], x + r * hidden, 2 * hidden));
    CHECK(std::memcmp(&features[r * width + hidden], x + r * hidden, 2 * hidden) != 0);
  }
}

TEST_CASE("drafts are the best tokens by the CPU's rules, of all of the vocabulary or a part") {
  for (const uint32_t draft_vocab_size : {0u, 61u}) {
    const DeviceDraft drafts(device_draft_config(device_config(), draft_vocab_size));
    DeviceDraftRun run(drafts, 3, 8);  // the same logits twice: the second time without context to make
    run.feed(prompt());
    const std::vector<int32_t> plain = run.draft(kAnchor);
    const std::vector<TokenBias> biases = {{plain[1], -50.0f}};
    std::vector<uint32_t> counts(run.config.vocab_size);
    for (const int32_t id : prompt()) ++counts[static_cast<size_t>(id)];
    cuda::SamplingRules rules{.temperature = 0.0f, .repetition_penalty = 1.7f};
    cuda::DeviceBuffer lists(run.device, 4 * counts.size() + sizeof(TokenBias) * biases.size());
    run.device->upload(lists.data(), counts.data(), 4 * counts.size());
    run.device->upload(lists.data() + 4 * counts.size(), biases.data(), sizeof(TokenBias) * biases.size());
    rules.token_counts = reinterpret_cast<const uint32_t*>(lists.data());
    rules.biases = reinterpret_cast<const TokenBias*>(lists.data() + 4 * counts.size());
    rules.num_biases = static_cast<uint32_t>(biases.size());
    const std::vector<int32_t> block = run.draft(kAnchor, rules);
    const std::vector<float> logits = run.draft_logits();
    const uint32_t vocab = run.round_plan.shape().draft.vocab_size;
    SamplingParams params{.temperature = 0.0f, .repetition_penalty = 1.7f, .logit_bias = biases};
    CHECK_EQ(block[0], kAnchor);
    uint32_t num_moved = 0;
    for (uint32_t r = 1; r < drafts.config.block_size; ++r) {
      const LogitRow row{&logits[(r - 1) * vocab], vocab, drafts.host->draft.vocab_ids()};
      CHECK_EQ(block[r], best_token(row, {.params = &params, .token_counts = counts.data()}));
      const SamplingParams greedy{.temperature = 0.0f};
      CHECK_EQ(plain[r], best_token(row, {.params = &greedy}));
      num_moved += block[r] != plain[r];
    }
    CHECK(num_moved != 0);  // the rules matter here
  }
}

CHECK_MAIN()
