// Sessions when things go wrong: bad input, cancels, throwing callbacks, failing steps, threads.
#include "core/checks.h"
#include "fake_engine.h"

#include <limits>
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
  CHECK_THROWS(capacity, "expected fewer than 50 tokens, got 50",
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
  CHECK_THROWS(cancelled, "32 tokens left", session.logits(prompt, out));
  CHECK(out.empty());
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
