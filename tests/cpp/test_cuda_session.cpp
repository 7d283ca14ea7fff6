// Sessions on the emulated GPU (or a real one), through the public API: what they generate, against
// the CPU engine and against their own logits; a hang.
#include "device_engine_fixture.h"
#include "fork_check.h"
#include "plan_mutator.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

using namespace mimo_rt;
using namespace fixture;

namespace {

/// Small enough for ThreadSanitizer.
const DeviceModel& one_dense_layer() {
  static const DeviceModel model(first_layers(1));
  return model;
}

/// The CPU engine with the same weights.
std::shared_ptr<Engine> cpu_engine() {
  auto impl = Engine::Impl::prepare(model().config, nullptr, options_for(2), plan_options(2, 8, 8));
  impl->weights = std::make_unique<Weights>(
      Weights::load(*model().checkpoint, model().config, {.num_threads = 1, .progress = {}}));
  impl->weight_bytes = count_weight_bytes(*impl->weights, nullptr);
  impl->executor = make_cpu_executor(*impl->weights, nullptr, {&impl->decode_plan, &impl->prefill_plan},
                                     "cpu-generic", {.num_workers = 2});
  return Engine::Impl::assemble(std::move(impl));
}

Tokens joined(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// The tokens that the sampler draws from the engine's own logits, all computed in one go.
Tokens redrawn(const std::shared_ptr<Engine>& engine, const Tokens& prompt, const Tokens& output,
               const SamplingParams& params, uint64_t sequence_id) {
  const uint32_t vocab = engine->config().vocab_size;
  Session session(engine, kSmall);
  std::vector<float> logits;
  session.logits(joined(prompt, output), logits);
  std::vector<uint32_t> counts(vocab);
  for (const int32_t id : prompt) ++counts[static_cast<size_t>(id)];
  std::vector<std::max_align_t> scratch(sampler_scratch_bytes(vocab) / sizeof(std::max_align_t) + 1);
  Tokens drawn;
  for (size_t i = 0; i < output.size(); ++i) {
    const auto position = static_cast<uint32_t>(prompt.size() + i);
    SampleRequest request{.params = &params, .token_counts = counts.data(), .sequence_id = sequence_id,
                          .position = position, .scratch = scratch.data()};
    SampleResult result;
    sample_token({logits.data() + uint64_t{position - 1} * vocab, vocab}, request, result);
    drawn.push_back(result.token_id);
    ++counts[static_cast<size_t>(output[i])];
  }
  return drawn;
}

}  // namespace

TEST_CASE("greedy tokens are the best of the engine's logits, which agree with the CPU's; the same statistics") {
  const Tokens prompt = random_tokens(model().config, 21, 3);
  const auto engine = open_engine(), cpu = cpu_engine();
  CHECK_EQ(engine->backend(), std::string("cuda"));
  CHECK_EQ(engine->num_workers(), 2u);
  CHECK_EQ(engine->options().prefill_chunk_tokens, 64u);
  CHECK_EQ(engine->options().max_decode_tokens, 8u);
  CHECK_EQ(engine->decode_plan().options().max_tokens, 8u);
  CHECK_EQ(engine->prefill_plan().options().max_tokens, 64u);
  Session session(engine, kSmall), cpu_session(cpu, kSmall);
  const GenerateResult result = session.generate(prompt, greedy(16));
  const GenerateResult expected = cpu_session.generate(prompt, greedy(16));
  CHECK(result.token_ids == redrawn(engine, prompt, result.token_ids, greedy(16).sampling, 0));
  const Tokens text = joined(prompt, result.token_ids);
  std::vector<float> logits, cpu_logits;
  session.logits(text, logits), cpu_session.logits(text, cpu_logits);
  CHECK(agree(logits, cpu_logits, model().config.vocab_size));
  cpu_logits.clear();
  cpu_session.logits(joined(prompt, Tokens(16, 1)), cpu_logits);  // control
  CHECK(!agree(logits, cpu_logits, model().config.vocab_size));
  CHECK(result.finish_reason == FinishReason::length);
  CHECK_EQ(result.stats.num_prompt_tokens, 21u);
  CHECK_EQ(result.stats.draft.num_rounds, 0u);  // rounds, but no draft
  const auto experts_of = [](const GenerateResult& r, const Engine& e) {
    const double of_experts = r.stats.weight_bytes_per_step - static_cast<double>(e.dense_bytes_per_step());
    return std::llround(r.stats.num_steps * of_experts / static_cast<double>(e.expert_bytes()));
  };
  CHECK_EQ(experts_of(result, *engine), experts_of(expected, *cpu));
  CHECK(engine->weight_bytes() > engine->dense_bytes_per_step() + engine->expert_bytes());
}

TEST_CASE("sampled tokens are those that the sampler draws from the same logits; logprobs, too") {
  const Tokens prompt = random_tokens(model().config, 10, 4);
  const auto engine = open_engine();
  Session session(engine, {.max_context = kSmallContext, .sequence_id = 7});
  GenerateOptions options = greedy(10);
  options.sampling = {.temperature = 0.9f, .sample_top_k = 40, .sample_top_p = 0.95f,
                      .repetition_penalty = 1.2f, .seed = 5, .num_logprobs = 3, .want_logprob = true};
  const GenerateResult result = session.generate(prompt, options);
  CHECK(result.token_ids == redrawn(engine, prompt, result.token_ids, options.sampling, 7));
  CHECK(result.token_ids != redrawn(engine, prompt, result.token_ids, options.sampling, 8));  // control
  CHECK_EQ(result.logprobs.size(), 10u);
  for (const auto& entry : result.logprobs) {
    CHECK(entry.chosen.logprob < 0.0f);
    CHECK_EQ(entry.alternatives.size(), 3u);
  }
  options.sampling.logit_bias = {{11, 100.0f}};
  options.stop_token_ids = {11};
  options.min_tokens = 3;  // 11 is masked until then
  const GenerateResult stopped = session.generate(prompt, options);
  CHECK_EQ(stopped.token_ids.size(), 4u);
  CHECK_EQ(stopped.token_ids.back(), 11);
}

TEST_CASE("a session goes on from what it holds, rolls back, and shares the engine") {
  const Tokens prompt = random_tokens(model().config, 12, 5), other = random_tokens(model().config, 9, 6);
  const auto engine = open_engine();
  Session session(engine, kSmall), second(engine, kSmall);
  const Tokens first = session.generate(prompt, greedy(5)).token_ids;
  const Tokens beside = second.generate(other, greedy(4)).token_ids;
  const Tokens longer = joined(joined(prompt, first), {1, 2, 3});
  const GenerateResult extended = session.generate(longer, greedy(4));
  CHECK_EQ(extended.stats.num_cached_tokens, 16u);
  const Tokens branch = joined({prompt.begin(), prompt.begin() + 10}, {4, 5});
  const GenerateResult back = session.generate(branch, greedy(4));
  CHECK_EQ(back.stats.num_cached_tokens, 10u);
  const auto alone = [&](const Tokens& tokens) {
    Session fresh(open_engine(), kSmall);
    return fresh.generate(tokens, greedy(4)).token_ids;
  };
  CHECK(extended.token_ids == alone(longer));
  CHECK(back.token_ids == alone(branch));
  CHECK(beside == alone(other));
}

TEST_CASE("logits are bit-equal for every step size; a greedy step brings none") {
  const Tokens tokens = random_tokens(model().config, 30, 7);
  const auto engine = open_engine();
  Session session(engine, kSmall);
  std::vector<float> alone, together;
  session.logits(tokens, alone, 1);
  for (const uint32_t step_tokens : {0u, 20u}) {  // of 20 rows 8, 8 and 4 have logits
    together.clear();
    session.logits(tokens, together, step_tokens);
    CHECK(bit_equal(alone, together));
  }
  CHECK_THROWS(invalid_argument, "step_tokens: expected 0..64, got 65", session.logits(tokens, together, 65));

  StepRunner one(model(), Plan::build(model().config, device_plan_options(2, 8, 8)));
  const SamplingParams params{.temperature = 0.0f};
  const SampleRequest request{.params = &params, .position = 3, .scratch = &one};
  StepRows rows(tokens, 0, 0, 3);
  const uint32_t last = 2;
  rows.input.num_logit_rows = 1;
  rows.input.logit_rows = &last;
  rows.input.sample = &request;
  rows.input.num_best_logits = 1;
  CHECK(one.run(rows.input));
  CHECK(one.output.logits == nullptr);
  const float* best = alone.data() + 2 * model().config.vocab_size;
  CHECK_EQ(one.sampled(0).token_id, std::max_element(best, best + model().config.vocab_size) - best);
  CHECK(!std::memcmp(one.executor->buffer_data(one.plan, kLogits), best, 4 * model().config.vocab_size));
}

TEST_CASE("a generation can be cancelled between two tokens, and the session goes on") {
  const Tokens prompt = random_tokens(model().config, 9, 8);
  Session session(open_engine(), kSmall);
  const Tokens whole = session.generate(prompt, greedy(6)).token_ids;
  uint32_t num_seen = 0;
  const GenerateResult cancelled = session.generate(prompt, greedy(6), [&](const TokenEvent&) {
    if (++num_seen == 2) session.cancel();
    return true;
  });
  CHECK(cancelled.finish_reason == FinishReason::abort);
  CHECK(cancelled.token_ids == Tokens(whole.begin(), whole.begin() + 2));
  CHECK(session.generate(prompt, greedy(6)).token_ids == whole);
}

TEST_CASE("tokens come one by one from one launch; a callback may use another session, which takes the GPU") {
  const Tokens prompt = random_tokens(model().config, 9, 8), text = random_tokens(model().config, 3, 9);
  const auto device = open_test_device();
  const auto engine = open_engine(device);
  Session session(engine, kSmall), other(engine, kSmall);
  const Tokens whole = session.generate(prompt, greedy(5)).token_ids;
  const Tokens beside = other.generate(text, greedy(2)).token_ids;
#if !defined(MIMO_RT_TEST_ON_GPU)
  const auto num_launches = [&](const TokenCallback& on_token) {
    const uint64_t before = device->num_launches;
    CHECK(session.generate(prompt, greedy(5), on_token).token_ids == whole);
    return device->num_launches - before - 1;  // without the prompt's last token: the rest is cached
  };
  CHECK_EQ(num_launches([](const TokenEvent&) { return true; }), 1u);
#endif
  Tokens streamed;
  const auto on_token = [&](const TokenEvent& event) {
    streamed.push_back(event.token_ids[0]);
    if (streamed.size() == 3) CHECK(other.generate(text, greedy(2)).token_ids == beside);
    return true;
  };
#if defined(MIMO_RT_TEST_ON_GPU)
  session.generate(prompt, greedy(5), on_token);
#else
  CHECK_EQ(num_launches(on_token), 2u + 2u);  // those of the other session in between
#endif
  CHECK(streamed == whole);
}

TEST_CASE("a stop string ends the text in the middle of a token, and the session goes on") {
  const Tokens prompt = random_tokens(model().config, 9, 8);
  const auto spelled = [](int32_t id) {
    return std::string{static_cast<char>('a' + id / 20), static_cast<char>('A' + id % 20)};
  };
  writer::TempDir dir;
  std::string vocabulary;
  for (int32_t id = 0; id < static_cast<int32_t>(model().config.vocab_size); ++id)
    vocabulary += concat(id ? "," : "", '"', spelled(id), "\":", id);
  dir.write("tokenizer.json",
            concat(R"({"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{)", vocabulary, "}}}"));
  Session session(open_engine(), kSmall);
  session.load_vocabulary(dir.path() / "tokenizer.json");
  const GenerateResult whole = session.generate(prompt, greedy(5));
  GenerateOptions options = greedy(5);
  options.stop = {whole.text.substr(5, 2)};  // the end of the third token and the beginning of the fourth
  const size_t end = whole.text.find(options.stop[0]);
  const GenerateResult stopped = session.generate(prompt, options);
  CHECK(stopped.finish_reason == FinishReason::stop);
  CHECK_EQ(stopped.text, whole.text.substr(0, end));
  CHECK_EQ(stopped.stop_string, options.stop[0]);
  const auto first = whole.token_ids.begin();
  CHECK(stopped.token_ids == Tokens(first, first + static_cast<long>(end + 1) / 2 + 1));
  CHECK_EQ(session.generate(prompt, greedy(2)).text, whole.text.substr(0, 4));
}

TEST_CASE("a session may end as soon as its callback has ended the generation") {
  const Tokens prompt = random_tokens(model().config, 9, 8);
  const auto engine = open_engine();
  auto session = std::make_unique<Session>(engine, kSmall);
  uint32_t num_seen = 0;
  const GenerateResult ended = session->generate(prompt, greedy(6), [&](const TokenEvent&) { return ++num_seen < 3; });
  CHECK(ended.finish_reason == FinishReason::abort);
  session.reset();  // with the memory that a launch may still wait in
  Session next(engine, kSmall);
  const Tokens whole = next.generate(prompt, greedy(3)).token_ids;
  CHECK(ended.token_ids == whole);
}

TEST_CASE("two threads stream in turn, each takes the GPU from a launch that waits; another one cancels") {
  constexpr uint32_t kTurns = 3;
  const DeviceModel& small = one_dense_layer();
  const auto device = open_test_device();
  const auto engine = open_cuda_engine(*small.checkpoint, small.config, options_for(1), {}, device);
  const Tokens prompts[] = {random_tokens(small.config, 2, 8), random_tokens(small.config, 1, 9)};
  Session sessions[] = {{engine, kSmall}, {engine, kSmall}};
  GenerateResult results[2];
  std::atomic<uint32_t> turn = 0, num_seen[2] = {0, 0};
  // Relaxed: the engine's lock alone orders what the threads do to the GPU, so that ThreadSanitizer looks at it.
  const auto give_turn = [&](uint32_t to) {
    turn.store(to, std::memory_order_relaxed);
    turn.notify_all();
  };
  const auto wait_turn = [&](uint32_t i) { turn.wait(1 - i, std::memory_order_relaxed); };
  const auto stream = [&](uint32_t i, uint32_t max_tokens) {
    wait_turn(i);
    results[i] = sessions[i].generate(prompts[i], greedy(max_tokens), [&](const TokenEvent&) {
      if (++num_seen[i] > kTurns) return true;
      give_turn(1 - i);
      if (num_seen[i] < kTurns) wait_turn(i);
      return true;
    });
  };
  std::thread first(stream, 0, kTurns), second(stream, 1, 0), third([&] {
    while (num_seen[1] < kTurns + 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    sessions[1].cancel();
  });
  for (std::thread* thread : {&first, &second, &third}) thread->join();
#if !defined(MIMO_RT_TEST_ON_GPU)
  CHECK_EQ(device->num_launches, 2u * kTurns);  // of which the last runs on
#endif
  const Tokens& cut = results[1].token_ids;
  CHECK(cut.size() >= kTurns + 2 && results[1].finish_reason == FinishReason::abort);
  Session third_session(engine, kSmall);
  const auto alone = [&](const Tokens& prompt) { return third_session.generate(prompt, greedy(kTurns)).token_ids; };
  CHECK(results[0].token_ids == alone(prompts[0]));
  CHECK(Tokens(cut.begin(), cut.begin() + kTurns) == alone(prompts[1]));
}

TEST_CASE("another thread cancels a generation while a launch of rounds runs") {
  const Tokens prompt = random_tokens(model().config, 9, 8);
  const auto engine = open_engine();
  Session session(engine, kSmall);
  std::thread canceller([&] {
    while (session.num_cached_tokens() < prompt.size()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // into the launch: an emulated round takes longer
    session.cancel();
  });
  const GenerateResult cancelled = session.generate(prompt, greedy(0));
  canceller.join();
  Session other(engine, kSmall);
  const Tokens whole = other.generate(prompt, greedy(0)).token_ids;
  CHECK_EQ(whole.size(), kSmallContext - prompt.size());
  CHECK(cancelled.token_ids == Tokens(whole.begin(), whole.begin() + static_cast<long>(cancelled.token_ids.size())));
#if !defined(MIMO_RT_TEST_ON_GPU)  // a real one may be ready before
  CHECK(cancelled.finish_reason == FinishReason::abort);
  CHECK(cancelled.token_ids.size() < whole.size());
#endif
  CHECK(session.generate(prompt, greedy(5)).token_ids == Tokens(whole.begin(), whole.begin() + 5));
}

#if !defined(MIMO_RT_TEST_ON_GPU)
/// Cancels a session `num_polls` polls after the second round was reported: in the middle of the third.
struct Canceller : EmulatedStepDevice {
  bool wait(uint64_t timeout_ns, const std::function<bool()>& has_news) override {
    const bool is_over = EmulatedStepDevice::wait(timeout_ns, has_news);
    if (has_news()) ++num_rounds;
    else if (session && num_rounds == 2 && num_polls-- == 0) session->cancel();
    return is_over;
  }
  Session* session = nullptr;
  uint32_t num_rounds = 0, num_polls = 0;
};

/// Lets another caller wait for the engine in the middle of the third round.
struct Visited : EmulatedStepDevice {
  bool wait(uint64_t timeout_ns, const std::function<bool()>& has_news) override {
    const bool is_over = EmulatedStepDevice::wait(timeout_ns, has_news);
    if (has_news()) ++num_rounds;
    else if (num_rounds == 2 && steps && !visitor.joinable()) {
      visitor = std::thread([this] {
        const std::lock_guard turn(*steps);
        on_turn();
      });
      while (steps->num_waiting() == 0) std::this_thread::yield();
    }
    return is_over;
  }
  StepQueue* steps = nullptr;
  std::function<void()> on_turn;
  std::thread visitor;
  uint32_t num_rounds = 0;
};

TEST_CASE("who waits for the engine waits for the end of the running round only, and the rounds go on afterwards") {
  const auto device = std::make_shared<Visited>();
  const auto engine = open_engine(device);
  Session session(engine, kSmall), other(engine, kSmall);
  const Tokens prompt = random_tokens(model().config, 9, 8);
  uint64_t num_cached = 0;
  device->on_turn = [&] { num_cached = session.num_cached_tokens(); };
  device->steps = &engine->impl().steps;
  const Tokens tokens = session.generate(prompt, greedy(9)).token_ids;
  device->visitor.join();
  CHECK_EQ(num_cached, prompt.size() + 3u);
  CHECK(tokens == other.generate(prompt, greedy(9)).token_ids);
}

TEST_CASE("after a cancel only the running round ends") {
  for (const uint32_t num_polls : {0u, 10u}) {
    const auto device = std::make_shared<Canceller>();
    Session session(open_engine(device), kSmall);
    device->session = &session;
    device->num_polls = num_polls;
    const GenerateResult result = session.generate(random_tokens(model().config, 9, 8), greedy(9));
    CHECK(result.finish_reason == FinishReason::abort);
    CHECK_EQ(result.token_ids.size(), 1u + 3u);  // the first one is the prompt's
  }
}
#endif

TEST_CASE("a fork is refused a session before the GPU is asked for its memory") {
  const auto engine = open_engine();
  check_refused_in_fork([&] { Session session(engine, kSmall); });
}

TEST_CASE("a hang is a timeout with a report; that executor stops, the GPU goes on") {
  PlanMutator broken(Plan::build(model().config, device_plan_options(2, 4, 4)));
  for (auto& list : broken.lists)
    for (Task& task : list)
      if (task.kind == TaskKind::o_proj && task.layer_idx == 2) task.signal_counter = kNoCounter;
  StepRunner engine(model(), broken.finish(), 1, 0, kHangTimeoutMs);
  const Tokens tokens = random_tokens(model().config, 4, 2);
  const StepRows rows(tokens, 0, 0, 4);
  const auto step = [&] { engine.executor->run(engine.plan, engine.cache, rows.input, engine.output); };
  CHECK_THROWS(timeout, "waits for counter 'layer 2 o_proj'", step());
  CHECK_THROWS(timeout, "stopped for good: ", step());
  Session session(open_engine(), kSmall);
  CHECK_EQ(session.generate(tokens, greedy(2)).token_ids.size(), 2u);
}

CHECK_MAIN()
