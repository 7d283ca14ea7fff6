// Sessions when things go wrong: bad input, cancels, throwing callbacks, failing steps, threads.
#include "core/checks.h"
#include "fake_engine.h"
#include "fork_check.h"

#include <limits>
#include <locale>
#include <mutex>
#include <thread>

using namespace fake_engine;

TEST_CASE("bad input is refused and changes nothing") {
  const Fixture f;
  Session session(f.engine, {.max_context = 50});
  const Tokens prompt = iota_tokens(10);
  session.generate(prompt, greedy(5));
  const uint32_t cached = session.num_cached_tokens();
  const auto with = [&](auto change) {
    GenerateOptions options = greedy(5);
    change(options);
    session.generate(prompt, options);
  };
  CHECK_THROWS(invalid_argument, "prompt: expected at least one", session.generate({}, greedy(1)));
  CHECK_THROWS(invalid_argument, "prompt[1]: expected 0..63, got 64",
               session.generate(Tokens{0, 64}, greedy(1)));
  CHECK_THROWS(invalid_argument, "got -1", session.generate(Tokens{-1}, greedy(1)));
  CHECK_THROWS(capacity, "expected at most 49 tokens, got 50",
               session.generate(iota_tokens(50), greedy(1)));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {-0.1f, nan, std::numeric_limits<float>::infinity()})
    CHECK_THROWS(invalid_argument, "temperature",
                 with([&](auto& o) { o.sampling.temperature = bad; }));
  for (const float bad : {0.0f, 1.1f, nan})
    CHECK_THROWS(invalid_argument, "sample_top_p",
                 with([&](auto& o) { o.sampling.sample_top_p = bad; }));
  for (const float bad : {-0.1f, 1.0f, nan})
    CHECK_THROWS(invalid_argument, "min_p", with([&](auto& o) { o.sampling.min_p = bad; }));
  for (const float bad : {0.0f, -1.0f, nan})
    CHECK_THROWS(invalid_argument, "repetition_penalty",
                 with([&](auto& o) { o.sampling.repetition_penalty = bad; }));
  CHECK_THROWS(invalid_argument, "num_logprobs",
               with([](auto& o) { o.sampling.num_logprobs = 21; }));
  for (const float bad : {100.5f, -101.0f, nan})
    CHECK_THROWS(invalid_argument, "logit_bias[1]: expected a bias in -100..100",
                 with([&](auto& o) { o.sampling.logit_bias = {{1, 1}, {2, bad}}; }));
  CHECK_THROWS(invalid_argument, "logit_bias[0]: expected a token id in 0..63, got 64",
               with([](auto& o) { o.sampling.logit_bias = {{64, 1}}; }));
  CHECK_THROWS(invalid_argument, "logit_bias[1]: expected ascending token ids, got 3 after 3",
               with([](auto& o) { o.sampling.logit_bias = {{3, 1}, {3, 1}}; }));
  CHECK_THROWS(invalid_argument, "stop_token_ids[1]",
               with([](auto& o) { o.stop_token_ids = {1, 64}; }));
  CHECK_THROWS(invalid_argument, "min_tokens", with([](auto& o) { o.min_tokens = 6; }));
  CHECK_THROWS(invalid_argument, "vocabulary", with([](auto& o) { o.stop = {"x"}; }));
  session.load_vocabulary(write_vocabulary());
  CHECK_THROWS(invalid_argument, "stop[0]", with([](auto& o) { o.stop = {""}; }));
  CHECK_THROWS(invalid_argument, "UTF-8", with([](auto& o) { o.stop = {"a", "\xff"}; }));
  CHECK_THROWS(invalid_argument, "1024", with([](auto& o) { o.stop = {std::string(1025, 'x')}; }));
  CHECK_THROWS(invalid_argument, "at most 16", with([](auto& o) { o.stop.assign(17, "x"); }));
  CHECK_EQ(session.num_cached_tokens(), cached);
  with([](auto&) {});  // control: unchanged options are fine
  CHECK_THROWS(invalid_argument, "max_context", Session(f.engine, {.max_context = 301}));
  CHECK_THROWS(invalid_argument, "nullptr", Session(nullptr));
}

TEST_CASE("cancel: from another thread, within one step, in prefill and in decode") {
  const Fixture f(4);
  const Tokens prompt = iota_tokens(40);
  Session session(f.engine);
  int cancel_at = 3;
  f.executor->on_step = [&] {
    if (int(f.executor->step_sizes.size()) == cancel_at)
      std::thread([&] { session.cancel(); }).join();
  };
  GenerateResult result = session.generate(prompt, greedy(20));
  CHECK(result.finish_reason == FinishReason::abort);
  CHECK(result.token_ids.empty());
  CHECK_EQ(f.executor->step_sizes.size(), 3u);
  CHECK_EQ(session.num_cached_tokens(), 12u);

  f.executor->step_sizes.clear();
  cancel_at = 7 + 5;  // 28 tokens left in chunks of 4, then 5 tokens more
  result = session.generate(prompt, greedy(20));
  CHECK(result.finish_reason == FinishReason::abort);
  CHECK_EQ(f.executor->step_sizes.size(), 12u);
  CHECK_EQ(result.token_ids.size(), 6u);
  f.executor->step_sizes.clear();
  cancel_at = -1;
  session.cancel();  // nothing runs: no effect on the next generation
  const GenerateResult whole = session.generate(prompt, greedy(20));
  CHECK(whole.token_ids == reference(prompt, greedy(20)));

  session.reset();
  f.executor->step_sizes.clear();
  cancel_at = 2;
  std::vector<float> out;
  out = {7.0f};
  CHECK_THROWS(cancelled, "32 tokens left", session.logits(prompt, out));
  CHECK((out == std::vector<float>{7.0f}));
}

TEST_CASE("cancel: of rounds only the running one ends") {
  for (const Drafts drafts : {Drafts::lookup, Drafts::model}) {
    const Fixture f(16, 4, drafts);
    Session session(f.engine);
    f.executor->on_step = [&] {
      if (f.executor->step_sizes.size() == 4) std::thread([&] { session.cancel(); }).join();
    };
    const GenerateResult result = session.generate(iota_tokens(10), greedy(100));
    CHECK(result.finish_reason == FinishReason::abort);
    CHECK_EQ(f.executor->step_sizes.size(), 4u);
  }
}

TEST_CASE("cancel: a session that waits for the engine runs no further step") {
  for (const bool cancels : {true, false}) {  // false: the control
    const Fixture f;
    const Tokens prompt = iota_tokens(10);
    Session running(f.engine), waiting(f.engine), scoring(f.engine);
    GenerateResult result;
    bool was_cancelled = false;
    std::vector<float> out = {7.0f};
    std::thread generates, scores;
    StepQueue& queue = f.engine->impl().steps;
    f.executor->on_step = [&] {
      if (f.executor->step_sizes.size() > 1) return;
      generates = std::thread([&] { result = waiting.generate(prompt, greedy(3)); });
      while (queue.num_waiting() != 1) std::this_thread::yield();
      scores = std::thread([&] {
        try {
          scoring.logits(prompt, out);
        } catch (const Error& error) {
          was_cancelled = error.code() == ErrorCode::cancelled;
        }
      });
      while (queue.num_waiting() != 2) std::this_thread::yield();
      if (!cancels) return;
      waiting.cancel();
      scoring.cancel();
    };
    running.generate(prompt, greedy(1));
    generates.join();
    scores.join();
    CHECK_EQ(was_cancelled, cancels);
    CHECK_EQ(result.finish_reason == FinishReason::abort, cancels);
    CHECK_EQ(result.token_ids.size(), cancels ? 0u : 3u);
    CHECK_EQ(f.executor->step_sizes.size(), cancels ? 1u : 5u);
    CHECK_EQ(waiting.num_cached_tokens(), cancels ? 0u : 12u);
    CHECK_EQ(out.size(), cancels ? 1u : 1u + 10u * kVocab);
  }
}

TEST_CASE("cancel: a decode that waits for the engine does not repeat its last token") {
  const Fixture f;
  const Tokens prompt = iota_tokens(10);
  Session session(f.engine);
  StepQueue& queue = f.engine->impl().steps;
  std::thread canceller;
  uint32_t num_tokens = 0;
  const GenerateResult result = session.generate(prompt, greedy(9), [&](const TokenEvent& event) {
    num_tokens += uint32_t(event.token_ids.size());
    if (num_tokens == 2) {
      queue.lock();  // the next step has to wait
      canceller = std::thread([&] {
        while (queue.num_waiting() != 1) std::this_thread::yield();
        session.cancel();
        queue.unlock();
      });
    }
    return true;
  });
  canceller.join();
  CHECK(result.finish_reason == FinishReason::abort);
  CHECK(result.token_ids == reference(prompt, greedy(2)));
  CHECK_EQ(num_tokens, 2u);
  CHECK_EQ(session.num_cached_tokens(), 11u);
}

TEST_CASE("a session that was moved from answers with an error") {
  const Fixture f;
  const Tokens prompt = iota_tokens(10);
  Session session(f.engine);
  Session moved = std::move(session);
  std::vector<float> out;
  constexpr const char* kText = "got one that was moved from";
  CHECK_THROWS(invalid_argument, kText, session.generate(prompt, greedy(1)));
  CHECK_THROWS(invalid_argument, kText, session.logits(prompt, out));
  CHECK_THROWS(invalid_argument, kText, session.load_vocabulary("x.json"));
  CHECK_THROWS(invalid_argument, kText, session.reset());
  CHECK_THROWS(invalid_argument, kText, session.num_cached_tokens());
  CHECK_THROWS(invalid_argument, kText, session.max_context());
  CHECK_THROWS(invalid_argument, kText, session.kv_bytes());
  session.cancel();  // the one call that is ignored
  CHECK(moved.generate(prompt, greedy(3)).token_ids == reference(prompt, greedy(3)));  // control
  session = std::move(moved);
  CHECK_EQ(session.num_cached_tokens(), 12u);
}

TEST_CASE("messages write numbers alike in every locale") {
  struct Grouping : std::numpunct<char> {
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };
  const std::locale before = std::locale::global(std::locale(std::locale(), new Grouping));
  std::ostringstream plain;
  plain << 1234567;
  const std::string text = concat(1234567, ' ', 0.5);
  std::locale::global(before);
  CHECK_EQ(text, "1234567 0.5");
  CHECK_EQ(plain.str(), "1.234.567");  // control: a plain stream follows the locale
}

TEST_CASE("callbacks may stop, throw, or call back") {
  const Fixture f;
  const Tokens prompt = iota_tokens(20);
  Session session(f.engine);
  int count = 0;
  const GenerateResult stopped = session.generate(
      prompt, greedy(20), [&](const TokenEvent&) { return ++count < 4; });
  CHECK(stopped.finish_reason == FinishReason::abort);
  CHECK_EQ(stopped.token_ids.size(), 4u);

  struct Custom {};
  bool passed = false;
  count = 0;
  try {
    session.generate(prompt, greedy(20), [&](const TokenEvent&) {
      if (++count == 6) throw Custom{};
      return true;
    });
  } catch (const Custom&) {
    passed = true;
  }
  CHECK(passed);
  CHECK_EQ(session.num_cached_tokens(), 25u);  // prompt and the five tokens before the sixth
  CHECK(session.generate(prompt, greedy(20)).token_ids == reference(prompt, greedy(20)));

  CHECK_THROWS(invalid_argument, "idle session",
               session.generate(prompt, greedy(5), [&](const TokenEvent&) {
                 session.reset();
                 return true;
               }));
  CHECK(session.generate(prompt, greedy(5)).token_ids == reference(prompt, greedy(5)));
}

TEST_CASE("errors of a step leave the session usable; broken logits are an error") {
  const Fixture f;
  const Tokens prompt = iota_tokens(50);
  Session session(f.engine);
  int fail_at = 2;
  f.executor->on_step = [&] {
    if (int(f.executor->step_sizes.size()) == fail_at)
      fail(ErrorCode::timeout, "fake", "worker 0 timed out");
  };
  CHECK_THROWS(timeout, "worker 0", session.generate(prompt, greedy(20)));
  CHECK_EQ(session.num_cached_tokens(), 16u);
  fail_at = -1;
  CHECK(session.generate(prompt, greedy(20)).token_ids == reference(prompt, greedy(20)));
  // A failed step of another continuation has overwritten ring rows: they must not be reused.
  const Tokens other = Tokens(prompt.begin(), prompt.begin() + 40) + iota_tokens(100, 5);
  f.executor->step_sizes.clear();
  fail_at = 6;
  CHECK_THROWS(timeout, "worker 0", session.generate(other, greedy(20)));
  fail_at = -1;
  CHECK(session.generate(prompt, greedy(20)).token_ids == reference(prompt, greedy(20)));

  f.executor->broken = true;
  CHECK_THROWS(internal, "logits of position 49", session.generate(prompt, greedy(20)));
  CHECK_EQ(session.num_cached_tokens(), 0u);
  f.executor->broken = false;
  CHECK(session.generate(prompt, greedy(20)).token_ids == reference(prompt, greedy(20)));
}

TEST_CASE("sessions of one engine on several threads give what they give alone") {
  const Fixture f;
  std::vector<std::thread> threads;
  std::vector<Tokens> results(4);
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      Session session(f.engine, {.sequence_id = uint64_t(i)});
      Session moved = std::move(session);
      session.cancel();  // a moved-from session ignores it
      GenerateOptions options = greedy(40);
      options.sampling.temperature = 1;
      results[size_t(i)] = moved.generate(iota_tokens(30, i), options).token_ids;
    });
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 4; ++i) {
    GenerateOptions options = greedy(40);
    options.sampling.temperature = 1;
    CHECK(results[size_t(i)] == reference(iota_tokens(30, i), options, uint64_t(i)));
  }
}

TEST_CASE("a fork of an engine answers with an error, whether it was busy or not") {
  for (const bool is_busy : {false, true}) {
    const Fixture f;
    const Tokens prompt = iota_tokens(10);
    Session session(f.engine);
    StepQueue& queue = f.engine->impl().steps;
    if (is_busy) queue.lock();
    fixture::check_refused_in_fork([&] { session.generate(prompt, greedy(3)); });
    if (is_busy) queue.unlock();
    CHECK(session.generate(prompt, greedy(3)).token_ids == reference(prompt, greedy(3)));  // control: the parent goes on
  }
}

TEST_CASE("step queue: callers are served in the order of arrival") {
  StepQueue queue;
  std::vector<int> order;
  std::vector<std::thread> threads;
  queue.lock();
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      const std::lock_guard lock(queue);
      order.push_back(i);
    });
    while (queue.num_waiting() != uint64_t(i) + 1) std::this_thread::yield();
  }
  queue.unlock();
  queue.lock();  // comes last: a std::mutex would let the running thread in again
  order.push_back(4);
  queue.unlock();
  for (std::thread& thread : threads) thread.join();
  CHECK((order == std::vector<int>{0, 1, 2, 3, 4}));
}

CHECK_MAIN()
