// Steps that several sequences share on a GPU, each with its keys and values in a cache of its own: the bits of steps
// alone, and sessions that find together in them.
#include "device_engine_fixture.h"
#include "plan/buffers.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

using namespace mimo_rt;
using namespace fixture;

namespace {

constexpr uint32_t kChunk = 8;

/// A text and its cache.
struct Text {
  Text(uint32_t max_context, uint32_t num_tokens, uint32_t seed, uint32_t max_step_tokens = kChunk)
      : tokens(random_tokens(model().config, num_tokens, seed)),
        cache(model().config, {.max_context = max_context, .max_step_tokens = max_step_tokens, .num_seqs = 1}) {
    cache.reserve(0, max_context);
  }
  Tokens tokens;
  KvCache cache;
  uint32_t size = 0;  ///< stored
};

struct JointRun {
  JointRun()
      : plan(Plan::build(model().config, device_plan_options(2, kChunk, kChunk))),
        executor(cuda::make_cuda_executor(device, model().pack(), model().config, {&plan}, {})) {}

  /// `counts[i]` more tokens of each text in one step. @return rows of logits
  std::vector<float> step(const std::vector<Text*>& texts, const std::vector<uint32_t>& counts) {
    std::vector<int32_t> ids;
    std::vector<uint32_t> seqs, positions, rows;
    std::vector<KvCache*> parts;
    for (uint32_t i = 0; i < texts.size(); ++i) {
      parts.push_back(&texts[i]->cache);
      for (uint32_t t = 0; t < counts[i]; ++t) {
        rows.push_back(static_cast<uint32_t>(ids.size()));
        seqs.push_back(i);
        positions.push_back(texts[i]->size);
        ids.push_back(texts[i]->tokens[texts[i]->size++]);
      }
    }
    StepInput input;
    input.num_tokens = input.num_logit_rows = static_cast<uint32_t>(ids.size());
    input.token_ids = ids.data();
    input.seq_idx = seqs.data();
    input.positions = positions.data();
    input.logit_rows = rows.data();
    StepOutput output;
    if (parts.size() == 1) {
      executor->run(plan, *parts[0], input, output);
    } else {
      KvCache joint(parts);
      executor->run(plan, joint, input, output);
    }
    std::vector<float> logits;
    for (uint32_t r = 0; r < input.num_logit_rows; ++r) {
      const float* row = output.logits + uint64_t{r} * output.logits_stride;
      logits.insert(logits.end(), row, row + model().config.vocab_size);
    }
    return logits;
  }
  std::vector<float> step(Text& text, uint32_t count) { return step({&text}, {count}); }
  void feed(Text& text, uint32_t count) {
    for (; count > kChunk; count -= kChunk) step(text, kChunk);
    step(text, count);
  }

  const std::shared_ptr<cuda::StepDevice> device = open_test_device(1);
  const Plan plan;
  const std::unique_ptr<Executor> executor;
};

std::vector<float> joined(std::vector<float> a, const std::vector<float>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// What sessions answer that generate at the same time. Each waits in its first callback until all are there. Some have
/// room for fewer tokens than a prefill step has rows. (They come and go with nobody at work: the emulated GPU's memory is
/// one thread's business.)
std::vector<GenerateResult> generate_together(const std::shared_ptr<Engine>& engine, const std::vector<Tokens>& prompts,
                                              const std::vector<GenerateOptions>& options) {
  std::vector<GenerateResult> results(prompts.size());
  std::vector<std::unique_ptr<Session>> sessions;
  for (uint32_t i = 0; i < prompts.size(); ++i)
    sessions.push_back(std::make_unique<Session>(
        engine, SessionOptions{.max_context = kSmallContext / 2 + 32 * i, .sequence_id = i}));
  std::vector<std::thread> threads;
  std::atomic<uint32_t> num_begun = 0;
  for (uint32_t i = 0; i < prompts.size(); ++i)
    threads.emplace_back([&, i] {
      bool has_begun = false;
      results[i] = sessions[i]->generate(prompts[i], options[i], [&](const TokenEvent&) {
        if (!has_begun) ++num_begun;
        has_begun = true;
        while (num_begun < prompts.size()) std::this_thread::yield();
        return true;
      });
    });
  for (std::thread& thread : threads) thread.join();
  return results;
}

}  // namespace

TEST_CASE("rows of caches of their own have the bits of steps alone, and leave keys and values behind") {
  // Less than a window and the rows of a step; several pages; a ring that has wrapped.
  const auto make = [] {
    std::vector<std::unique_ptr<Text>> texts;
    texts.push_back(std::make_unique<Text>(24, 20, 1));
    texts.push_back(std::make_unique<Text>(300, 80, 2));
    texts.push_back(std::make_unique<Text>(60, 48, 3));
    return texts;
  };
  const auto together = make(), alone = make();
  JointRun run;
  const uint32_t begin[] = {6, 65, 34};
  for (uint32_t i = 0; i < 3; ++i)
    for (Text* text : {together[i].get(), alone[i].get()}) run.feed(*text, begin[i]);
  Text &a = *together[0], &b = *together[1], &c = *together[2];
  CHECK(bit_equal(run.step({&a, &b, &c}, {1, 3, 2}),
                  joined(joined(run.step(*alone[0], 1), run.step(*alone[1], 3)), run.step(*alone[2], 2))));
  CHECK(bit_equal(run.step({&c, &a}, {4, 4}), joined(run.step(*alone[2], 4), run.step(*alone[0], 4))));
  for (uint32_t i = 0; i < 3; ++i) CHECK(bit_equal(run.step(*together[i], 3), run.step(*alone[i], 3)));
  // The comparison sees whose keys and values a row has.
  Text d(80, 60, 3), e(80, 60, 4);
  run.feed(d, 9);
  run.feed(e, 9);
  e.tokens[9] = d.tokens[9];
  const std::vector<float> rows = run.step({&d, &e}, {1, 1});
  const auto half = static_cast<long>(rows.size() / 2);
  CHECK(!bit_equal(std::vector(rows.begin(), rows.begin() + half), std::vector(rows.begin() + half, rows.end())));
  // Buffers are those of the memory that the step has worked in.
  CHECK(!std::memcmp(run.executor->buffer_data(run.plan, kLogits), rows.data(), sizeof(float) * model().config.vocab_size));
}

TEST_CASE("caches for steps of different sizes are refused: their rings are not alike") {
  JointRun run;
  Text a(64, 4, 1), b(64, 4, 2, 2 * kChunk);
  CHECK_THROWS(invalid_argument, "max_step_tokens", run.step({&a, &b}, {1, 1}));
  a.size = 0;
  CHECK_EQ(run.step(a, 2).size(), 2 * model().config.vocab_size);  // the executor goes on
}

TEST_CASE("sessions that decode at the same time share steps, with drafts from their texts, and each has its own tokens") {
  for (const char* draft : {"none", "ngram"}) {
    const auto device = open_test_device();
    EngineOptions engine_options = options_for(2);
    engine_options.draft = draft;
    const auto engine = open_engine(device, engine_options);
    const uint32_t num_tokens = 8;
    std::vector<Tokens> prompts;
    std::vector<GenerateOptions> options(3, greedy(num_tokens));
    for (uint32_t i = 0; i < 3; ++i) prompts.push_back(random_tokens(model().config, 3 + i, 20 + i));
    prompts[0].assign(6, 5);
    options[0].sampling.logit_bias = {{5, 100.0f}};
    for (GenerateOptions& o : options) o.draft.mode = DraftOptions::Mode::fixed;  // whatever steps take
    options[1].sampling = {.temperature = 0.8f, .sample_top_p = 0.9f, .seed = 3};
    options[2].sampling = {.temperature = 0.0f, .repetition_penalty = 1.3f};
    const std::vector<GenerateResult> results = generate_together(engine, prompts, options);
    // The bias lets the text go on as it has begun.
    CHECK_EQ(results[0].stats.draft.num_accepted_tokens > 0, engine->impl().has_lookup);
#if !defined(MIMO_RT_TEST_ON_GPU)
    CHECK(device->num_launches < 3 + 15);  // of the 21 tokens behind the first most come three at a time
#endif
    for (uint32_t i = 0; i < 3; ++i) {
      Session session(engine, {.max_context = kSmallContext, .sequence_id = i});
      const GenerateResult alone = session.generate(prompts[i], options[i]);
      CHECK(results[i].token_ids == alone.token_ids);
      CHECK_EQ(results[i].token_ids.size(), num_tokens);
      CHECK(results[i].finish_reason == FinishReason::length);
    }
  }
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("a session that has no room for keys and values any more fails alone, not with those that share its step") {
  const auto device = open_test_device();
  const auto engine = open_engine(device);
  Session decoding(engine, kSmall), emptied(engine, kSmall);
  const Tokens prompt = {5};  // no longer than a token that is decoded
  const Tokens expected = decoding.generate(prompt, greedy(3)).token_ids;
  emptied.reset();
  device->free_bytes_left = 1000;
  StepQueue& steps = engine->impl().steps;
  Tokens tokens;
  std::string errors[2];
  std::atomic<uint32_t> num_over = 0;
  const auto begin = [&](Session& session, uint32_t i) {
    std::thread thread([&session, &prompt, &tokens, &errors, &num_over, i] {
      try {
        tokens = session.generate(prompt, greedy(3)).token_ids;
      } catch (const Error& error) {
        errors[i] = error.what();
      }
      ++num_over;
    });
    while (steps.num_waiting() + num_over <= i) std::this_thread::yield();
    return thread;
  };
  steps.lock();
  std::thread first = begin(decoding, 0), second = begin(emptied, 1);
  steps.unlock();
  first.join();
  second.join();
  CHECK_EQ(errors[0], "");
  CHECK(errors[1].find("keys and values") != std::string::npos);
  CHECK(tokens == expected);
}
#endif

CHECK_MAIN()
