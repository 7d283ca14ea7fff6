// Sessions on the emulated GPU (or a real one) whose drafts are looked up in the text, there: the text of plain decoding
// and the statistics of the CPU's sessions, whatever ends it and whoever uses the GPU in between. A bias towards three
// tokens makes texts that repeat.
#include "device_engine_fixture.h"
#include "engine/ngram_lookup.h"

#include <algorithm>
#include <atomic>
#include <thread>

using namespace mimo_rt;
using namespace fixture;

namespace {

const SessionOptions kSession{.max_context = kSmallContext, .sequence_id = 7};

/// A dense layer; a MoE layer behind it, whose route comes by a tag edge.
enum class Layers : uint8_t { dense = 1, dense_and_experts = 2 };

const DeviceModel& model_of(Layers layers) {
  static const DeviceModel dense(first_layers(1)), both(first_layers(2), Routing::clear);
  return layers == Layers::dense ? dense : both;
}

std::shared_ptr<Engine> open_lookup(Layers layers, const char* draft, uint32_t num_workers,
                                    const std::shared_ptr<cuda::StepDevice>& device = open_test_device()) {
  EngineOptions options = options_for(num_workers);
  options.draft = draft;
  return open_cuda_engine(*model_of(layers).checkpoint, model_of(layers).config, options, {}, device);
}

/// The CPU engine with the same weights.
std::shared_ptr<Engine> cpu_engine(Layers layers) {
  const DeviceModel& model = model_of(layers);
  PlanOptions plan = plan_options(2, kNgramBlockSize, kNgramBlockSize);
  plan.is_round = true;
  auto impl = Engine::Impl::prepare(model.config, nullptr, options_for(2), plan);
  impl->has_lookup = true;
  impl->weights =
      std::make_unique<Weights>(Weights::load(*model.checkpoint, model.config, {.num_threads = 1, .progress = {}}));
  impl->weight_bytes = count_weight_bytes(*impl->weights, nullptr);
  impl->executor = make_cpu_executor(*impl->weights, nullptr, {&impl->decode_plan, &impl->prefill_plan, &*impl->round_plan},
                                     "cpu-generic", {.num_workers = 2});
  return Engine::Impl::assemble(std::move(impl));
}

Tokens prompt(uint32_t num_tokens = 9) { return random_tokens(device_config(), num_tokens, 8); }

Tokens joined(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

GenerateOptions three_tokens(uint32_t max_tokens, const SamplingParams& params = {.temperature = 0.8f, .seed = 3}) {
  GenerateOptions options = greedy(max_tokens);
  options.sampling = params;
  options.sampling.logit_bias = {{5, 40.0f}, {9, 40.0f}, {11, 40.0f}};
  options.draft.mode = DraftOptions::Mode::fixed;
  return options;
}

bool is_same(const DraftStats& a, const DraftStats& b) { return !std::memcmp(&a, &b, sizeof a); }

/// What rounds of fixed width do with a text that is known beforehand.
DraftStats stats_of_text(const Tokens& text, size_t num_prompt_tokens, const GenerateOptions& options) {
  NgramLookup lookup(device_config().vocab_size);
  DraftWidth width(options.draft, kNgramBlockSize, DraftSource::ngram_lookup);
  size_t size = num_prompt_tokens + 1;  // with the anchor
  lookup.append({text.data(), size});
  const size_t end = options.max_tokens ? num_prompt_tokens + options.max_tokens : kSmallContext;
  while (size < text.size()) {
    const size_t num_rows = std::min<size_t>(kNgramBlockSize, end - size);
    Tokens drafts(std::min<size_t>(num_rows - 1, width.max_drafts()));
    if (lookup.propose(drafts) == 0) drafts.clear();
    const auto is_right = [&](size_t row) { return row < drafts.size() && drafts[row] == text[size + row]; };
    size_t row = 0;
    while (size + row + 1 < text.size() && is_right(row)) ++row;
    width.observe({.num_drafts = static_cast<uint32_t>(drafts.size()),
                   .num_accepted = static_cast<uint32_t>(row),
                   .is_cut = is_right(row)});
    lookup.append({&text[size], row + 1});
    size += row + 1;
  }
  return width.stats();
}

/// Engines that tests share: what a session does depends on nothing that its engine has done before.
struct Engines {
  Engines(Layers layers, uint32_t num_workers)
      : drafting(open_lookup(layers, "ngram", num_workers)), plain(open_lookup(layers, "none", num_workers)),
        cpu(cpu_engine(layers)) {}
  const std::shared_ptr<Engine> drafting, plain, cpu;
};
const Engines& dense() {
  static const Engines engines(Layers::dense, 1);
  return engines;
}

/// That a generation has the tokens of plain decoding and the rounds of its text.
void check_result(const Engines& engines, const GenerateResult& result, const Tokens& text, const GenerateOptions& options) {
  Session plain(engines.plain, kSession);
  CHECK(result.token_ids == plain.generate(text, options).token_ids);
  CHECK(is_same(result.stats.draft, stats_of_text(joined(text, result.token_ids), text.size(), options)));
  CHECK_EQ(result.stats.num_steps, result.stats.draft.num_rounds);
}
GenerateResult check_alone(const GenerateOptions& options) {
  Session session(dense().drafting, kSession);
  const GenerateResult result = session.generate(prompt(), options);
  check_result(dense(), result, prompt(), options);
  return result;
}

}  // namespace

TEST_CASE("greedy and sampled tokens are those of plain decoding, the statistics those of the CPU's session") {
  uint64_t num_accepted = 0, num_refused = 0;
  uint32_t num_equal = 0;
  const auto run = [&](const Engines& engines, const SamplingParams& params) {
    const GenerateOptions options = three_tokens(30, params);
    Session session(engines.drafting, kSession), cpu(engines.cpu, kSession);
    const GenerateResult result = session.generate(prompt(), options), expected = cpu.generate(prompt(), options);
    check_result(engines, result, prompt(), options);
    if (result.token_ids == expected.token_ids) {  // products are rounded in another way
      CHECK(is_same(result.stats.draft, expected.stats.draft));
      ++num_equal;
    }
    num_accepted += result.stats.draft.num_accepted_tokens;
    num_refused += result.stats.draft.num_draft_tokens - result.stats.draft.num_accepted_tokens;
  };
  run(Engines(Layers::dense_and_experts, 2), {.temperature = 0.8f, .seed = 3});
  run(dense(), {.temperature = 0.0f});
  run(dense(), {.temperature = 0.7f, .sample_top_k = 20, .repetition_penalty = 1.2f, .seed = 5});
  std::printf("  %u of 3 texts are the CPU's\n", num_equal);
#if !defined(MIMO_RT_TEST_ON_GPU)
  CHECK(num_equal >= 2);
#endif
  CHECK(num_accepted >= 20 && num_refused >= 30);
}

TEST_CASE("modes and widths change the rounds, not the text") {
  GenerateOptions options = three_tokens(24);
  const Tokens expected = check_alone(options).token_ids;
  options.draft.num_draft_tokens = 3;
  CHECK_EQ(check_alone(options).stats.draft.width_histogram[4], 0u);
  options.draft = {.mode = DraftOptions::Mode::off};
  CHECK_EQ(check_alone(options).stats.draft.num_rounds, 23u);
  options.draft = {};
  const auto engine = open_lookup(Layers::dense, "auto", 1);  // looks up where there is no draft model
  CHECK(engine->notes().empty());
  CHECK_EQ(engine->max_draft_tokens(), 7u);
  Session session(engine, kSession);
  for (uint32_t i = 0; i < 3; ++i) {  // adaptive: learns from one to the next
    const GenerateResult result = session.generate(prompt(), options);
    CHECK(result.token_ids == expected);
    CHECK_EQ(result.stats.draft.num_rounds + result.stats.draft.num_accepted_tokens, 23u);
  }
}

TEST_CASE("stop ids, limits and the end of the context end a block where plain decoding would") {
  for (uint32_t max_tokens = 1; max_tokens <= 12; max_tokens += 1 + max_tokens / 4) check_alone(three_tokens(max_tokens));
  uint32_t num_stopped = 0;
  for (const uint32_t min_tokens : {0u, 9u}) {
    GenerateOptions options = three_tokens(16);
    options.min_tokens = min_tokens;
    options.stop_token_ids = {min_tokens ? 5 : 9};
    num_stopped += check_alone(options).finish_reason == FinishReason::stop;
  }
  CHECK_EQ(num_stopped, 2u);
  Session session(dense().drafting, kSession);
  const Tokens text = prompt(kSmallContext - 13);
  const GenerateResult result = session.generate(text, three_tokens(0));
  CHECK_EQ(result.token_ids.size(), 13u);
  check_result(dense(), result, text, three_tokens(0));
}

TEST_CASE("no schedule and no late block changes tokens or rounds") {
  const GenerateOptions options = three_tokens(16);
  for (const uint64_t seed : {1u, 2u, 3u}) {
    setenv("MIMO_RT_CUDA_DELAY_SEED", seed == 1 ? "0" : "5", 1);
    Session session(open_lookup(Layers::dense, "ngram", 3, open_test_device(seed)), kSession);
    check_result(dense(), session.generate(prompt(), options), prompt(), options);
    unsetenv("MIMO_RT_CUDA_DELAY_SEED");
  }
}

TEST_CASE("a caller who comes back after every round, and ends the text in a block; logprobs") {
  const auto device = open_test_device();
  Session session(open_lookup(Layers::dense, "ngram", 1, device), kSession);
  GenerateOptions options = three_tokens(24);
  const GenerateResult result = session.generate(prompt(), options, [](const TokenEvent&) { return true; });
#if !defined(MIMO_RT_TEST_ON_GPU)  // where the caller may be late without meaning it
  CHECK_EQ(device->num_launches, 2u);  // the prompt's, and one for all rounds
#endif
  check_result(dense(), result, prompt(), options);
  for (uint32_t num_tokens = 9; num_tokens <= 12; ++num_tokens) {
    uint32_t num_seen = 0;
    const GenerateResult cut = session.generate(prompt(), options, [&](const TokenEvent&) { return ++num_seen < num_tokens; });
    CHECK(cut.token_ids == Tokens(result.token_ids.begin(), result.token_ids.begin() + num_tokens));
    CHECK_EQ(cut.stats.draft.num_rounds + cut.stats.draft.num_accepted_tokens, num_tokens - 1);
  }
  options.max_tokens = 12;
  options.sampling.want_logprob = true;
  const GenerateResult with_logprobs = session.generate(prompt(), options);
  check_result(dense(), with_logprobs, prompt(), options);
  CHECK_EQ(with_logprobs.logprobs.size(), 12u);
}

TEST_CASE("a second turn and a branch look up in their own text, also where another session has used the GPU") {
  Session session(dense().drafting, kSession), other(dense().drafting, kSession);
  const GenerateOptions options = three_tokens(14);
  const Tokens first = session.generate(prompt(), options).token_ids;
  const Tokens beside = joined(prompt(4), {9, 5, 11, 9});
  uint32_t num_seen = 0;
  GenerateResult inner;
  const Tokens second = joined(joined(prompt(), first), {5, 9, 11, 5});
  const GenerateResult turn = session.generate(second, options, [&](const TokenEvent&) {
    if (++num_seen == 3) inner = other.generate(beside, options);
    return true;
  });
  CHECK_EQ(turn.stats.num_cached_tokens, prompt().size() + first.size() - 1);
  check_result(dense(), turn, second, options);
  check_result(dense(), inner, beside, options);
  const Tokens branch = joined({second.begin(), second.begin() + 12}, {11, 9, 11});
  const GenerateResult back = session.generate(branch, options);
  CHECK_EQ(back.stats.num_cached_tokens, 12u);
  check_result(dense(), back, branch, options);
}

TEST_CASE("a cancelled generation ends after a round, and the session goes on") {
  Session session(dense().drafting, kSession);
  const GenerateOptions options = three_tokens(0);
  std::thread canceller([&] {
    while (session.num_cached_tokens() < prompt().size()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    session.cancel();
  });
  const GenerateResult cancelled = session.generate(prompt(), options);
  canceller.join();
  const Tokens whole = session.generate(prompt(), options).token_ids;
  CHECK_EQ(whole.size(), kSmallContext - prompt().size());
  CHECK(cancelled.token_ids == Tokens(whole.begin(), whole.begin() + static_cast<long>(cancelled.token_ids.size())));
}

CHECK_MAIN()
