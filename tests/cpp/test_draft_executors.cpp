// The draft on both executors: against its formulas, against each other, and against itself in other divisions.
#include "draft_oracle.h"
#include "draft_run.h"
#include "plan_mutator.h"

#include "check.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

constexpr uint32_t kPromptTokens = 27;  // past the windows of the tiny models
constexpr uint32_t kBlockSize = 5;

/// What a round computes before it samples, and the keys and values it read.
struct Drafted {
  Vector x, logits, kv;
};

/// The last rows that a query of the block may see, of every layer of the draft.
Vector context_rows(DraftRun& run) {
  Vector out;
  for (uint32_t l = 0; l < run.draft_config.num_layers; ++l) {
    const uint32_t window = run.draft_config.window_tokens[l];
    const uint32_t begin = window ? kPromptTokens - std::min(kPromptTokens, window) : 0;
    for (uint32_t pos = begin; pos < kPromptTokens; ++pos) {
      const uint32_t layer = run.config.num_layers + l;
      for (uint32_t h = 0; h < run.draft_config.num_kv_heads; ++h)
        for (uint32_t d = 0; d < run.draft_config.qk_head_dim; ++d)
          out.push_back(bf16_to_f32(run.cache.k_row(layer, 0, h, pos)[d]));
      for (uint32_t h = 0; h < run.draft_config.num_kv_heads; ++h)
        for (uint32_t d = 0; d < run.draft_config.v_head_dim; ++d)
          out.push_back(bf16_to_f32(run.cache.v_row(layer, 0, h, pos)[d]));
    }
  }
  return out;
}

/// The prompt in steps, then one round.
void run_one_round(DraftRun& run, const std::vector<int32_t>& tokens, int32_t anchor) {
  run.feed(tokens);
  run.begin_rounds(anchor);
  run.state->max_rounds = 1;
  run.state->begin();
  run.run_rounds();
}

std::vector<int32_t> prompt_of(const DraftModel& model) { return random_tokens(model.style.config, kPromptTokens, 3); }
constexpr int32_t kAnchor = 7;

Drafted draft(const Weights& weights, const DraftWeights& draft_weights, const std::vector<int32_t>& tokens,
              const DraftRunOptions& options) {
  DraftRun run(weights, draft_weights, options);
  run_one_round(run, tokens, kAnchor);
  const uint32_t hidden = run.config.hidden_size, vocab = run.round_plan.shape().draft.vocab_size;
  const uint32_t stride = run.round_plan.buffers()[kDraftLogits].cols;
  const uint8_t* x = run.executor->buffer_data(run.round_plan, kDraftX);
  const uint8_t* logits = run.executor->buffer_data(run.round_plan, kDraftLogits);
  Drafted out;
  for (uint32_t i = 0; i < kBlockSize * hidden; ++i)
    out.x.push_back(options.exact ? reinterpret_cast<const double*>(x)[i]
                                  : double{bf16_to_f32(reinterpret_cast<const uint16_t*>(x)[i])});
  for (uint32_t r = 0; r + 1 < kBlockSize; ++r)
    for (uint32_t i = 0; i < vocab; ++i)
      out.logits.push_back(options.exact ? reinterpret_cast<const double*>(logits)[r * stride + i]
                                         : double{reinterpret_cast<const float*>(logits)[r * stride + i]});
  if (!options.exact) out.kv = context_rows(run);
  return out;
}

Drafted draft(const DraftModel& model, const DraftRunOptions& options) {
  return draft(model.weights, model.draft, prompt_of(model), options);
}

Drafted draft_by_formula(const DraftModel& model, uint32_t shift = 0, bool drops_first_layer = false) {
  DraftOracle oracle(model);
  for (Vector features : exact_features(model, prompt_of(model))) {
    if (drops_first_layer) std::fill_n(features.begin(), model.style.config.hidden_size, 0.0);
    oracle.add_context(features, shift);
  }
  Drafted out;
  for (const Vector& row : oracle.logits(kAnchor)) out.logits.insert(out.logits.end(), row.begin(), row.end());
  for (const Vector& row : oracle.draft_x) out.x.insert(out.x.end(), row.begin(), row.end());
  for (uint32_t l = 0; l < model.style.draft.num_layers; ++l) {
    const uint32_t window = model.style.draft.window_tokens[l];
    for (uint32_t pos = window ? kPromptTokens - std::min(kPromptTokens, window) : 0; pos < kPromptTokens; ++pos)
      out.kv.insert(out.kv.end(), oracle.context_kv(l, pos).begin(), oracle.context_kv(l, pos).end());
  }
  return out;
}

/// |a - b| / |b|
double distance(const Vector& a, const Vector& b) {
  CHECK_EQ(a.size(), b.size());
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace

// Both sides compute in float64; sums of a few hundred terms over a few layers, and RoPE angles up to 31, stay far
// below 1e-10 of the values.
TEST_CASE("the exact reference computes the draft's formulas") {
  for (const DraftStyle& style : draft_styles(kBlockSize)) {
    const DraftModel model(style);
    const Drafted expected = draft_by_formula(model);
    for (const uint32_t chunk : {1u, 8u, 27u}) {
      const Drafted exact = draft(model, {.exact = true, .chunk = chunk});
      CHECK(distance(exact.x, expected.x) < 1e-10);
      CHECK(distance(exact.logits, expected.logits) < 1e-10);
    }
    // Controls: a feature of one layer lost, keys rotated for the next position.
    CHECK(distance(draft_by_formula(model, 0, true).logits, expected.logits) > 1e-3);
    const double shifted = distance(draft_by_formula(model, 1).logits, expected.logits);
    CHECK(style.draft.rotary_dim ? shifted > 1e-3 : shifted == 0.0);
  }
}

// As for whole steps: the CPU rounds where the rounded reference does, so it may be at most twice as far from the exact
// model, buffer by buffer.
TEST_CASE("context, hidden rows and draft logits are as close to the formulas as the rounding points allow") {
  for (const DraftStyle& style : draft_styles(kBlockSize)) {
    const DraftModel model(style);
    const Drafted exact = draft_by_formula(model);
    const Drafted rounded = draft(model, {});
    const auto check_buffer = [&](const char* name, Vector Drafted::*buffer) {
      const double noise = distance(rounded.*buffer, exact.*buffer);
      CHECK(noise > 0.0 && noise < 0.05);
      for (const std::string& backend : runnable_cpu_backends()) {
        const double found = distance(draft(model, {.backend = backend}).*buffer, exact.*buffer);
        CHECK(found > 0.0);
        if (!(found <= 2 * noise))
          check::report(__FILE__, __LINE__, style.name + " " + backend + " " + name + ": distance " +
                                                std::to_string(found) + ", noise " + std::to_string(noise));
      }
    };
    check_buffer("context kv", &Drafted::kv);
    check_buffer("draft_x", &Drafted::x);
    check_buffer("draft_logits", &Drafted::logits);
  }
}

TEST_CASE("the comparison sees every wrong setting of a draft") {
  const DraftStyle style = draft_styles(kBlockSize)[0];
  const DraftModel model(style);
  const Drafted exact = draft(model, {.exact = true});
  const double noise = distance(draft(model, {}).logits, exact.logits);
  const auto changed = [&](auto change) {
    DraftStyle wrong = style;
    change(wrong.draft);
    return distance(draft(DraftModel(wrong), {.exact = true}).logits, exact.logits);
  };
  CHECK_EQ(changed([](DraftConfig&) {}), 0.0);
  CHECK(changed([](DraftConfig& c) { c.window_tokens.assign(3, c.window_tokens[0] + 1); }) > noise);
  CHECK(changed([](DraftConfig& c) { c.window_tokens.assign(3, c.window_tokens[0] - 1); }) > noise);
  CHECK(changed([](DraftConfig& c) { c.value_scale = 1.0; }) > 4 * noise);
  CHECK(changed([](DraftConfig& c) { c.rope_theta = 100; }) > 4 * noise);
  CHECK(changed([](DraftConfig& c) { c.rotary_dim = 32; }) > 4 * noise);
  CHECK(changed([](DraftConfig& c) { c.rms_norm_eps = 0.3; }) > 4 * noise);
  CHECK(changed([](DraftConfig& c) { std::swap(c.target_layer_ids[0], c.target_layer_ids[2]); }) > 4 * noise);
  const auto damaged = [&](const float* DraftLayerWeights::*vector, uint32_t count, float value) {
    const DraftModel other(style);
    for (uint32_t l = 0; l < 3; ++l) std::fill_n(const_cast<float*>(other.draft.layer(l).*vector), count, value);
    return distance(draft(other, {.exact = true}).logits, exact.logits);
  };
  CHECK(damaged(&DraftLayerWeights::sink_logits, 4, -1e30f) > noise);
  CHECK(damaged(&DraftLayerWeights::sink_logits, 4, 3.0f) > 4 * noise);
  CHECK(damaged(&DraftLayerWeights::k_norm, 32, 0.1f) > 4 * noise);
}

TEST_CASE("draft logits and context are bit-equal for any workers and any division of the context") {
  for (const DraftStyle& style : draft_styles(kBlockSize)) {
    const DraftModel model(style);
    for (const std::string& backend : runnable_cpu_backends()) {
      const Drafted alone = draft(model, {.backend = backend, .num_workers = 1, .chunk = 1});
      for (const uint32_t num_workers : {1u, 2u, 3u})
        for (const uint32_t chunk : {1u, 8u, 27u, 150u}) {
          const Drafted other = draft(model, {.backend = backend, .num_workers = num_workers, .chunk = chunk});
          CHECK(other.x == alone.x && other.logits == alone.logits && other.kv == alone.kv);
        }
      // Control: another first token changes all that follows.
      std::vector<int32_t> tokens = prompt_of(model);
      tokens[0] = tokens[0] ? 0 : 1;
      const Drafted other = draft(model.weights, model.draft, tokens, {.backend = backend});
      CHECK(other.logits != alone.logits && other.kv != alone.kv);
    }
  }
}

TEST_CASE("norms of their own give the bits of fused ones") {
  using FuseNorm = PlanOptions::FuseNorm;
  for (const DraftStyle& style : draft_styles(kBlockSize)) {
    const DraftModel model(style);
    std::vector<std::string> backends = runnable_cpu_backends();
    backends.push_back("ref");
    for (const std::string& backend : backends) {
      const Drafted fused = draft(model, {.backend = backend, .fuse_norm = FuseNorm::yes});
      const Drafted apart = draft(model, {.backend = backend, .num_workers = 3, .fuse_norm = FuseNorm::no});
      CHECK(apart.x == fused.x && apart.logits == fused.logits && apart.kv == fused.kv);
      DraftRunOptions options{.backend = backend, .fuse_norm = FuseNorm::no};
      options.change_round_plan = [](const Plan& plan) {  // control: the MLP of a layer has the norm of attention
        PlanMutator mutator(plan);
        for (auto& list : mutator.lists)
          for (Task& task : list)
            if (task.kind == TaskKind::draft_norm && task.layer_idx == 1) task.flags &= static_cast<uint16_t>(~kMlpNorm);
        return mutator.finish();
      };
      CHECK(draft(model, options).logits != fused.logits);
    }
  }
}

TEST_CASE("a draft row does not depend on how long the context was when its rows were made") {
  // 150 positions: several blocks of rows on the CPU, several pages, rings that have wrapped.
  for (const DraftStyle& style : draft_styles(kBlockSize)) {
    const DraftModel model(style);
    const std::vector<int32_t> tokens = random_tokens(style.config, 150, 9);
    for (const std::string& backend : runnable_cpu_backends()) {
      std::vector<std::vector<float>> logits;
      for (const uint32_t chunk : {150u, 140u, 7u}) {
        DraftRun run(model.weights, model.draft, {.backend = backend, .chunk = chunk});
        run_one_round(run, tokens, kAnchor);
        logits.push_back(run.draft_logits());
      }
      CHECK(bit_equal(logits[0], logits[1]) && bit_equal(logits[0], logits[2]));
    }
  }
}

TEST_CASE("losing the capture of one layer, or moving the context by one position, changes the drafts") {
  const DraftModel model(draft_styles(kBlockSize)[0]);
  for (const std::string& backend : {std::string("ref"), runnable_cpu_backends().back()}) {
    const auto logits = [&](const DraftRunOptions& options, uint32_t shift) {
      DraftRun run(model.weights, model.draft, options);
      run.feed(prompt_of(model));
      if (shift)  // a key of every layer lies where that of the position before belongs
        for (uint32_t l = 0; l < model.style.draft.num_layers; ++l) {
          const uint32_t layer = model.style.config.num_layers + l;
          uint16_t* to = run.cache.k_row(layer, 0, 0, 22);
          std::memcpy(to, run.cache.k_row(layer, 0, 0, 23), 2 * model.style.draft.qk_head_dim);
        }
      run.begin_rounds(kAnchor);
      run.state->max_rounds = 1;
      run.state->begin();
      run.run_rounds();
      return run.draft_logits();
    };
    const std::vector<float> good = logits({.backend = backend}, 0);
    CHECK(bit_equal(good, logits({.backend = backend}, 0)));
    CHECK(!bit_equal(good, logits({.backend = backend}, 1)));
    DraftRunOptions options{.backend = backend};
    options.change_step_plan = [](const Plan& plan) {
      PlanMutator mutator(plan);
      for (auto& list : mutator.lists)
        for (Task& task : list)
          if (task.layer_idx == 2) task.flags &= static_cast<uint16_t>(~kCapture);
      return mutator.finish();
    };
    CHECK(!bit_equal(good, logits(options, 0)));
  }
}

TEST_CASE("steps with context rows that cannot be made are refused") {
  const DraftModel model(draft_styles(kBlockSize)[0]);
  DraftRun run(model.weights, model.draft, {.backend = runnable_cpu_backends().back()});
  const std::vector<int32_t> tokens = prompt_of(model);
  run.feed({tokens.begin(), tokens.begin() + 16});
  const auto refused = [&](const char* needle, uint32_t begin, uint32_t num_rows) {
    StepRows rows(tokens, 0, 16, 17);
    rows.input.context_begin = begin;
    rows.input.num_context_rows = num_rows;
    StepOutput output;
    CHECK_THROWS(invalid_argument, needle, run.executor->run(run.step_plan, run.cache, rows.input, output));
  };
  refused("num_context_rows", 0, 9);
  refused("context rows", 12, 5);
  refused("context rows", 17, 1);
  refused("context rows", ~0u, 2);
  DraftRun far(model.weights, model.draft, {.backend = runnable_cpu_backends().back()});
  const std::vector<int32_t> many = random_tokens(model.style.config, 200, 1);
  far.feed(many);
  StepRows rows(many, 0, 199, 200);
  rows.input.num_context_rows = 1;
  StepOutput output;
  CHECK_THROWS(invalid_argument, "context_begin", far.executor->run(far.step_plan, far.cache, rows.input, output));
  CHECK(run.feed(tokens) >= 0);
}

CHECK_MAIN()
