// Rounds on both executors: the tokens of plain decoding, whatever the draft says; and when things go wrong.
#include "draft_run.h"
#include "plan_mutator.h"

#include "check.h"

#include <stdexcept>

using namespace mimo_rt;
using namespace fixture;

namespace {

/// The prompt that most tests begin with: past the windows of the tiny models.
std::vector<int32_t> prompt_of(const ModelConfig& config) { return random_tokens(config, 27, 3); }

struct Plain {
  int32_t anchor;               ///< the first token
  std::vector<int32_t> tokens;  ///< those after it
};

/// Greedy decoding by a model that has no draft.
Plain decode_plain(const Weights& weights, const std::string& backend, uint32_t count) {
  const ModelConfig& config = weights.config();
  const Plan plan = Plan::build(config, plan_options(2, 8, 8));
  ExecutorOptions options;
  options.num_workers = 2;
  const auto executor = backend == "ref" ? make_ref_executor(weights, nullptr, {&plan}, options, false)
                                         : make_cpu_executor(weights, nullptr, {&plan}, backend, options);
  KvCache cache(config, {.max_context = 256, .max_step_tokens = 8, .num_seqs = 1});
  std::vector<int32_t> tokens = prompt_of(config);
  const std::vector<float> logits = feed(*executor, plan, cache, tokens, 8, config.vocab_size);
  Plain plain;
  plain.anchor = argmax(logits.data() + logits.size() - config.vocab_size, config.vocab_size);
  cache.reserve(0, 256);
  for (int32_t anchor = plain.anchor; plain.tokens.size() < count;) {
    tokens.push_back(anchor);
    const auto size = static_cast<uint32_t>(tokens.size());
    const StepRows rows(tokens, 0, size - 1, size);
    StepOutput output;
    executor->run(plan, cache, rows.input, output);
    plain.tokens.push_back(anchor = argmax(output.logits, config.vocab_size));
  }
  return plain;
}

/// A draft that always proposes `token_id`: nothing but the mask embedding reaches its last norm, and that is the
/// token's row of the head.
void make_constant(const DraftModel& model, int32_t token_id) {
  for (uint32_t l = 0; l < model.style.draft.num_layers; ++l) {
    const DraftLayerWeights& layer = model.draft.layer(l);
    std::memset(const_cast<uint8_t*>(layer.o_proj.data), 0, layer.o_proj.bytes());
    std::memset(const_cast<uint8_t*>(layer.down.data), 0, layer.down.bytes());
  }
  const PackedMatrix& head = model.weights.lm_head();
  const uint8_t* pairs = head.row_group(static_cast<uint32_t>(token_id) / 16) + token_id % 16 * 4;
  auto* mask = const_cast<uint16_t*>(model.draft.mask_embedding());
  for (uint32_t k = 0; k < model.style.config.hidden_size; ++k)
    std::memcpy(mask + k, pairs + k / 2 * 64 + k % 2 * 2, 2);
}

}  // namespace

TEST_CASE("greedy rounds emit the tokens of plain steps, for every block size and style") {
  for (const DraftStyle& style : draft_styles(2)) {
    const DraftModel plain_model(style);
    for (const std::string& backend : runnable_cpu_backends()) {
      const Plain plain = decode_plain(plain_model.weights, backend, 40);
      for (uint32_t block_size = 2; block_size <= 16; ++block_size) {
        const DraftModel model({style.name, style.config, [&] {
                                  DraftConfig draft = style.draft;
                                  draft.block_size = block_size;
                                  return draft;
                                }()});
        DraftRun run(model.weights, model.draft,
                     {.backend = backend, .num_workers = 1 + block_size % 3, .chunk = 5 + block_size});
        CHECK_EQ(run.feed(prompt_of(style.config)), plain.anchor);
        CHECK(run.decode_rounds(plain.anchor, 40) == plain.tokens);
        CHECK(run.state->end == RoundEnd::max_tokens);
        CHECK_EQ(run.state->num_output, 41u);
        CHECK_EQ(run.size, 27u + 40u);
        const DraftStats& stats = run.width.stats();
        CHECK(stats.num_drafted_rounds > 0 && stats.num_draft_tokens > stats.num_accepted_tokens);
      }
    }
  }
}

TEST_CASE("rounds of a draft that is often right emit the same tokens in fewer rounds") {
  for (const DraftStyle& style : draft_styles(6)) {
    for (const std::string& backend : runnable_cpu_backends()) {
      const DraftModel model(style);
      const Plain plain = decode_plain(model.weights, backend, 60);
      std::vector<uint32_t> counts(style.config.vocab_size);
      for (const int32_t token_id : plain.tokens) ++counts[static_cast<size_t>(token_id)];
      const auto most = std::max_element(counts.begin(), counts.end()) - counts.begin();
      make_constant(model, static_cast<int32_t>(most));
      DraftRun run(model.weights, model.draft, {.backend = backend, .num_workers = 3});
      run.feed(prompt_of(style.config));
      CHECK(run.decode_rounds(plain.anchor, 60) == plain.tokens);
      CHECK(run.width.stats().num_accepted_tokens > 0);
      CHECK(run.state->num_rounds < 60);
      CHECK_EQ(run.state->num_rounds + run.width.stats().num_accepted_tokens, 60u);
    }
  }
}

TEST_CASE("adaptive rounds narrow while workers run, and emit the tokens of plain steps") {
  uint64_t num_narrow_rounds = 0;
  for (const DraftStyle& style : draft_styles(8)) {
    std::vector<std::string> backends = runnable_cpu_backends();
    backends.push_back("ref");
    for (const std::string& backend : backends) {
      const DraftModel model(style);
      const Plain plain = decode_plain(model.weights, backend, 40);
      for (const uint32_t num_workers : {1u, 3u, 8u}) {
        DraftRun run(model.weights, model.draft, {.backend = backend, .num_workers = num_workers, .draft = {}});
        run.feed(prompt_of(style.config));
        // Costs and acceptance with which drafting pays, but every row is to be earned: medians until a width has run
        // three times.
        for (int i = 0; i < 5; ++i)
          for (uint32_t n = 1; n < 8; ++n)
            run.width.observe({.num_drafts = n, .num_accepted = n, .ns = 1'000'000'000 + 350'000'000ull * n});
        for (int i = 0; i < 5; ++i) run.width.observe({.ns = 1'000'000'000});
        run.width.begin(40, run.width.budget());
        CHECK(run.decode_rounds(plain.anchor, 40) == plain.tokens);
        for (uint32_t n = 1; n < 7; ++n) num_narrow_rounds += run.width.stats().width_histogram[n];
      }
    }
  }
  CHECK(num_narrow_rounds > 10);
}

TEST_CASE("a round accepts exactly the drafts that plain decoding would have made") {
  for (const DraftStyle& style : draft_styles(5)) {
    const DraftModel model(style);
    std::vector<std::string> backends = runnable_cpu_backends();
    backends.push_back("ref");
    for (const std::string& backend : backends) {
      const Plain plain = decode_plain(model.weights, backend, 40);
      DraftRun run(model.weights, model.draft, {.backend = backend, .change_round_plan = without_proposals});
      run.feed(prompt_of(style.config));
      run.begin_rounds(plain.anchor);
      run.state->max_rounds = 1;
      for (uint32_t done = 0, round = 0; done + 5 <= plain.tokens.size(); ++round) {
        const uint32_t num_right = round % 5;  // 0..4 drafts are right, the next is wrong
        for (uint32_t i = 0; i < 4; ++i) {
          const int32_t right = plain.tokens[done + i];
          run.state->block[i + 1] = i < num_right ? right : right ? 0 : 1;
        }
        run.state->begin();
        run.run_rounds();
        done += num_right + 1;
        CHECK_EQ(run.tokens_out.size(), done);
        CHECK(run.state->end == RoundEnd::max_rounds);
        CHECK(std::equal(run.tokens_out.begin(), run.tokens_out.end(), plain.tokens.begin()));
        if (run.tokens_out.size() != done) break;
      }
      CHECK_EQ(run.width.stats().accepted_histogram[4] > 0, true);
    }
  }
}

TEST_CASE("what rounds leave in the caches is what plain steps leave, bit for bit") {
  for (const DraftStyle& style : draft_styles(5)) {
    const DraftModel model(style);
    const uint32_t num_layers = style.config.num_layers + style.draft.num_layers;
    for (const std::string& backend : runnable_cpu_backends()) {
      const std::vector<int32_t> prompt = prompt_of(style.config);
      DraftRun steps(model.weights, model.draft, {.backend = backend, .num_workers = 1});
      const int32_t anchor = steps.feed(prompt);
      const std::vector<int32_t> expected = steps.decode_steps(prompt, anchor, 33);
      DraftRun run(model.weights, model.draft, {.backend = backend, .num_workers = 3});
      run.feed(prompt);
      CHECK(run.decode_rounds(anchor, 33) == expected);
      CHECK(run.width.stats().num_draft_tokens > run.width.stats().num_accepted_tokens);  // some were rejected
      CHECK_EQ(run.size, steps.size);
      for (uint32_t layer = 0; layer < num_layers; ++layer) {
        const bool is_draft = layer >= style.config.num_layers;
        const uint32_t end = is_draft ? std::min(run.num_context, steps.num_context) : run.size;
        CHECK(end > 50);
        const uint32_t window = is_draft ? style.draft.window_tokens[layer - style.config.num_layers]
                                         : style.config.layers[layer].window_tokens;
        const uint32_t begin = window ? end - std::min(end, window - 1) : 0;  // what a next token sees
        CHECK(run.kv(layer, begin, end) == steps.kv(layer, begin, end));
      }
      CHECK(run.features(run.num_context, run.size) == steps.features(run.num_context, run.size));
      CHECK(run.features(run.size - 3, run.size - 1) != run.features(run.size - 2, run.size));  // control
    }
  }
}

TEST_CASE("steps after rounds and rounds after steps go on alike") {
  const DraftModel model(draft_styles(4)[0]);
  for (const std::string& backend : runnable_cpu_backends()) {
    const Plain plain = decode_plain(model.weights, backend, 40);
    DraftRun run(model.weights, model.draft, {.backend = backend});
    std::vector<int32_t> tokens = prompt_of(model.style.config);
    run.feed(tokens);
    int32_t anchor = plain.anchor;
    std::vector<int32_t> made;
    for (uint32_t i = 0; i < 4; ++i) {
      tokens.push_back(anchor);
      std::vector<int32_t> out = run.decode_rounds(anchor, 5);
      tokens.insert(tokens.end(), out.begin(), out.end());
      made.insert(made.end(), out.begin(), out.end());
      made.push_back(anchor = run.feed(tokens));  // the last token of the rounds, in a step
      out = run.decode_steps(tokens, anchor, 2);
      tokens.push_back(anchor);
      tokens.push_back(out[0]);
      made.insert(made.end(), out.begin(), out.end());
      anchor = out[1];
    }
    CHECK_EQ(made.size(), 32u);
    CHECK(std::equal(made.begin(), made.end(), plain.tokens.begin()));
  }
}

// Drafts are the draft's best tokens, which leaves every draw of the target as it would be without them.
TEST_CASE("rounds with a temperature and a penalty emit the tokens that rounds without drafts do") {
  for (const DraftStyle& style : draft_styles(6)) {
    const DraftModel model(style);
    for (const std::string& backend : runnable_cpu_backends()) {
      const auto decode = [&](DraftOptions::Mode mode, uint32_t num_workers, uint64_t seed) {
        DraftRun run(model.weights, model.draft,
                     {.backend = backend, .num_workers = num_workers, .draft = {.mode = mode}});
        run.params = {.temperature = 2.5f, .sample_top_p = 0.98f, .repetition_penalty = 1.2f, .seed = seed};
        std::vector<uint32_t> counts(style.config.vocab_size);
        const std::vector<int32_t> prompt = prompt_of(style.config);
        for (const int32_t token_id : prompt) ++counts[static_cast<size_t>(token_id)];
        run.state->request.token_counts = counts.data();
        run.feed(prompt);
        const std::vector<int32_t> tokens = run.decode_rounds(1, 40);
        CHECK_EQ(run.width.stats().num_drafted_rounds > 0, mode == DraftOptions::Mode::fixed);
        return tokens;
      };
      const std::vector<int32_t> plain = decode(DraftOptions::Mode::off, 1, 8);
      CHECK_EQ(plain.size(), 40u);
      CHECK(decode(DraftOptions::Mode::fixed, 1, 8) == plain);
      CHECK(decode(DraftOptions::Mode::fixed, 3, 8) == plain);
      CHECK(decode(DraftOptions::Mode::fixed, 1, 9) != plain);  // control
    }
  }
}

TEST_CASE("rounds of any sequence of the cache, and by more workers than cores, are the same") {
  const DraftModel model(draft_styles(4)[0]);
  const std::string backend = runnable_cpu_backends().back();
  const Plain plain = decode_plain(model.weights, backend, 30);
  for (const auto& [seq_idx, num_workers] : {std::pair{0u, 8u}, std::pair{2u, 2u}}) {
    DraftRun run(model.weights, model.draft, {.backend = backend, .num_workers = num_workers, .seq_idx = seq_idx});
    run.feed(prompt_of(model.style.config));
    CHECK(run.decode_rounds(plain.anchor, 30) == plain.tokens);
  }
}

TEST_CASE("a round that does not draft is a plain step, and its context follows later") {
  const DraftModel model(draft_styles(4)[0]);
  const std::string backend = runnable_cpu_backends().back();
  const Plain plain = decode_plain(model.weights, backend, 120);
  DraftRun run(model.weights, model.draft,
               {.backend = backend, .chunk = 64, .draft = {.mode = DraftOptions::Mode::off}});
  run.feed(prompt_of(model.style.config));
  CHECK(run.decode_rounds(plain.anchor, 30) == std::vector<int32_t>(plain.tokens.begin(), plain.tokens.begin() + 30));
  CHECK_EQ(run.num_context, 0u);  // 57 are pending: too few to make
  CHECK_EQ(run.state->num_rounds, 30u);
  run.width = DraftWidth({.mode = DraftOptions::Mode::fixed}, 4);
  const std::vector<int32_t> rest = run.decode_rounds(plain.tokens[29], 90);
  CHECK(rest == std::vector<int32_t>(plain.tokens.begin() + 30, plain.tokens.end()));
  CHECK(run.num_context > 57);
  DraftRun steps(model.weights, model.draft, {.backend = backend, .chunk = 1});
  std::vector<int32_t> tokens = prompt_of(model.style.config);
  tokens.push_back(steps.feed(tokens));
  tokens.insert(tokens.end(), plain.tokens.begin(), plain.tokens.begin() + 60);
  steps.feed(tokens);
  const uint32_t full_layer = model.style.config.num_layers;
  CHECK(run.kv(full_layer, 80, 87) == steps.kv(full_layer, 80, 87));
}

TEST_CASE("the caller gets every token in time, stops rounds, and a full ring ends them") {
  const DraftModel model(draft_styles(4)[1]);
  for (const std::string& backend : {std::string("ref"), runnable_cpu_backends().back()}) {
    const Plain plain = decode_plain(model.weights, backend, 40);
    DraftRun run(model.weights, model.draft, {.backend = backend, .max_context = 400});
    run.feed(prompt_of(model.style.config));
    run.begin_rounds(plain.anchor);
    run.state->begin();
    uint32_t num_polls = 0;
    run.executor->run_rounds(run.round_plan, run.cache, *run.state, [&] {
      run.poll();
      ++num_polls;
      if (run.tokens_out.size() >= 10) run.state->stop_requested = true;
    });
    CHECK(run.state->end == RoundEnd::requested);
    CHECK_EQ(run.tokens_out.size(), run.state->num_output - 1);  // none is left in the ring
    CHECK(run.tokens_out.size() >= 10 && num_polls >= 2);
    run.settle();
    run.state->begin();
    run.executor->run_rounds(run.round_plan, run.cache, *run.state, {});  // nobody reads
    CHECK(run.state->end == RoundEnd::requested);
    CHECK(run.state->ring.free() < 4);
    run.poll();
    CHECK(std::equal(plain.tokens.begin(), plain.tokens.end(), run.tokens_out.begin()));
    run.state->begin();
    run.run_rounds();
    CHECK(run.state->end == RoundEnd::context);
    CHECK_EQ(run.size, 400u);
    CHECK_EQ(run.tokens_out.size(), 400u - 27);
    run.state->begin();  // nothing is left to do
    run.run_rounds();
    CHECK_EQ(run.tokens_out.size(), 400u - 27);
  }
}

TEST_CASE("an exception of the caller's ends the rounds and leaves them resumable") {
  const DraftModel model(draft_styles(4)[0]);
  for (const std::string& backend : {std::string("ref"), runnable_cpu_backends().back()}) {
    const Plain plain = decode_plain(model.weights, backend, 40);
    DraftRun run(model.weights, model.draft, {.backend = backend, .num_workers = 3});
    run.feed(prompt_of(model.style.config));
    run.begin_rounds(plain.anchor);
    run.state->request.max_tokens = 41;
    run.state->begin();
    std::string caught;
    try {
      run.executor->run_rounds(run.round_plan, run.cache, *run.state, [&] {
        run.poll();
        if (run.tokens_out.size() >= 3) throw std::runtime_error("the caller's own");
      });
    } catch (const std::runtime_error& error) {
      caught = error.what();
    }
    CHECK_EQ(caught, std::string("the caller's own"));
    run.settle();
    run.poll();
    CHECK_EQ(run.tokens_out.size(), run.state->num_output - 1);
    run.state->begin();
    run.run_rounds();
    CHECK(run.tokens_out == plain.tokens);
  }
}

TEST_CASE("active experts add up over rounds, and the trace is that of the last round") {
  const DraftModel model(draft_styles(4)[0]);
  const std::string backend = runnable_cpu_backends().back();
  std::vector<uint64_t> active;
  for (const uint32_t num_workers : {1u, 3u}) {
    DraftRun run(model.weights, model.draft, {.backend = backend, .num_workers = num_workers});
    const int32_t anchor = run.feed(prompt_of(model.style.config));
    run.executor->set_tracing(num_workers == 3);
    run.decode_rounds(anchor, 20);
    active.push_back(run.state->active_experts);
    const uint64_t num_steps = run.state->num_rounds * uint64_t{3};  // MoE layers
    CHECK(active.back() >= 3 * num_steps && active.back() <= 10 * num_steps);
    const std::vector<TaskTrace> trace = run.executor->last_trace();
    CHECK_EQ(trace.size(), num_workers == 3 ? run.round_plan.num_tasks() : 0);
    uint64_t begin_ns = ~uint64_t{0};
    for (const TaskTrace& task : trace) {
      CHECK(task.wait_begin_ns <= task.begin_ns && task.begin_ns <= task.end_ns);
      begin_ns = std::min(begin_ns, task.wait_begin_ns);
    }
    if (num_workers == 3) CHECK_EQ(begin_ns, 0u);
  }
  CHECK_EQ(active[0], active[1]);
}

TEST_CASE("a signal lost in a round is a timeout with a report, and the process goes on") {
  const DraftModel model(draft_styles(4)[1]);
  const std::string backend = runnable_cpu_backends().back();
  const auto lose = [](TaskKind kind) {
    return [kind](const Plan& plan) {
      PlanMutator mutator(plan);
      for (auto& list : mutator.lists)
        for (Task& task : list)
          if (task.kind == kind) task.signal_counter = kNoCounter;
      return mutator.finish();
    };
  };
  for (const auto& [kind, needle] : {std::pair{TaskKind::draft_o_proj, "(draft_gate_up_proj, layer 0)"},
                                     std::pair{TaskKind::accept, "the end of the round"}}) {
    DraftRun run(model.weights, model.draft, {.backend = backend, .timeout_ms = 300, .change_round_plan = lose(kind)});
    const int32_t anchor = run.feed(prompt_of(model.style.config));
    CHECK_THROWS(timeout, needle, run.decode_rounds(anchor, 20));
    CHECK_THROWS(timeout, "stopped for good", run.decode_rounds(anchor, 20));
    CHECK_THROWS(timeout, "stopped for good", run.decode_steps(prompt_of(model.style.config), anchor, 1));
    DraftRun next(model.weights, model.draft, {.backend = backend, .timeout_ms = 10000});
    next.feed(prompt_of(model.style.config));
    CHECK_EQ(next.decode_rounds(anchor, 20).size(), 20u);
  }
  DraftRun ref(model.weights, model.draft, {.change_round_plan = lose(TaskKind::draft_o_proj)});
  const int32_t anchor = ref.feed(prompt_of(model.style.config));
  CHECK_THROWS(plan_invalid, "draft_", ref.decode_rounds(anchor, 20));
}

TEST_CASE("rounds that cannot run safely are refused, and the executor stays usable") {
  const DraftModel model(draft_styles(4)[0]);
  DraftRun run(model.weights, model.draft, {.backend = runnable_cpu_backends().back()});
  const int32_t anchor = run.feed(prompt_of(model.style.config));
  const auto refused = [&](const char* needle, auto change) {
    run.begin_rounds(anchor);
    run.state->request.max_tokens = 1000;
    run.state->begin();
    change(*run.state);
    CHECK_THROWS(invalid_argument, needle, run.run_rounds());
  };
  run.cache.truncate(0, 40);
  refused("reserved", [](RoundState&) {});
  run.cache.reserve(0, 256);
  refused("begin()", [](RoundState& s) { s.input.round = nullptr; });
  refused("begin()", [](RoundState& s) { s.position += 1; });
  refused("num_draft_rows", [](RoundState& s) { s.input.num_draft_rows = 3; });
  refused("num_tokens", [](RoundState& s) { s.input.num_tokens = 5; });
  refused("num_context_rows", [](RoundState& s) { s.input.num_context_rows = 9; });
  refused("context rows", [](RoundState& s) { s.input.context_begin = 26; });
  refused("token_ids[0]", [](RoundState& s) { s.block[0] = -1; });
  refused("max_context_rows", [](RoundState& s) { s.request.max_context_rows = 9; });
  refused("params", [](RoundState& s) { s.request.params = nullptr; });
  run.state->request.params = &run.params;
  run.state->request.max_context_rows = 8;
  run.begin_rounds(anchor);
  run.state->begin();
  CHECK_THROWS(invalid_argument, "plan", run.executor->run_rounds(run.step_plan, run.cache, *run.state, {}));
  const std::vector<int32_t> tokens = prompt_of(model.style.config);
  StepRows rows(tokens, 0, 0, 1);
  StepOutput output;
  CHECK_THROWS(invalid_argument, "plan", run.executor->run(run.round_plan, run.cache, rows.input, output));
  rows.input.num_draft_rows = 4;
  CHECK_THROWS(invalid_argument, "num_draft_rows", run.executor->run(run.step_plan, run.cache, rows.input, output));
  KvCache other(model.style.config, {.max_context = 64, .max_step_tokens = 8, .num_seqs = 1});
  other.reserve(0, 64);
  CHECK_THROWS(invalid_argument, "layers", run.executor->run_rounds(run.round_plan, other, *run.state, {}));
  CHECK_THROWS(invalid_argument, "draft", make_cpu_executor(model.weights, nullptr, {&run.round_plan}, "cpu-generic",
                                                            {.num_workers = 2}));
  CHECK_THROWS(invalid_argument, "draft", make_ref_executor(model.weights, nullptr, {&run.round_plan}, {}, false));
  CHECK_EQ(run.decode_rounds(anchor, 20).size(), 20u);
}

CHECK_MAIN()
