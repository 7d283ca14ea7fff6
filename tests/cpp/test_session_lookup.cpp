// Generations whose drafts are looked up in the text: the text is that of plain decoding, whatever ends it and whoever
// decodes beside it. The fake model's answers do not repeat; a bias towards two tokens makes every other lookup right.
#include "drafted_session.h"
#include "test_configs.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <thread>

using namespace fake_engine;

namespace {

Fixture with_lookup(uint32_t chunk_tokens = 16) { return Fixture(chunk_tokens, 4, Drafts::lookup); }

/// Somebody else decodes all the time, so that all rounds are steps that others may share.
Fixture beside_another(uint32_t chunk_tokens = 16) {
  Fixture f = with_lookup(chunk_tokens);
  f.executor->joins = true;
  f.engine->impl().num_sharing = 1;
  return f;
}

GenerateOptions two_tokens(uint32_t max_tokens) {
  GenerateOptions options = greedy(max_tokens);
  options.sampling.logit_bias = {{5, 50.0f}, {9, 50.0f}};
  return options;
}

}  // namespace

TEST_CASE("tokens equal plain decoding for every number of drafts") {
  const Tokens prompt = iota_tokens(21), expected = reference(prompt, two_tokens(150));
  for (uint32_t i = 2; i < 2 * kBlock; ++i) {
    const uint32_t n = i / 2;
    Fixture f = i % 2 ? beside_another() : with_lookup();
    Session session(f.engine);
    const GenerateResult result = session.generate(prompt, fixed(two_tokens(150), n));
    CHECK(result.token_ids == expected);
    CHECK(stats_of(result).num_accepted_tokens > 40);
    CHECK(stats_of(result).accepted_histogram[0] > 10);
    CHECK_EQ(stats_of(result).width_histogram[n + 1], 0u);
    CHECK_EQ(stats_of(result).num_rounds + stats_of(result).num_accepted_tokens, 149u);
    CHECK_EQ(result.stats.num_steps, stats_of(result).num_rounds);
  }
}

TEST_CASE("sampled tokens equal plain decoding with the same seed, for both kinds of proposal") {
  for (const auto proposal : {DraftOptions::Proposal::argmax, DraftOptions::Proposal::sampled})
    for (const float penalty : {1.0f, 1.3f}) {
      GenerateOptions options = fixed(two_tokens(120));
      options.draft.proposal = proposal;
      options.sampling.temperature = 0.8f;
      options.sampling.repetition_penalty = penalty;
      options.sampling.seed = 11;
      const Tokens prompt = iota_tokens(9);
      Fixture f = with_lookup();
      Session session(f.engine);
      const GenerateResult result = session.generate(prompt, options);
      CHECK(result.token_ids == reference(prompt, options));
      CHECK(stats_of(result).num_accepted_tokens > 20);
      options.sampling.seed = 12;
      CHECK(result.token_ids != reference(prompt, options));
    }
}

TEST_CASE("adaptive and off give the same text; off never drafts") {
  check_adaptive_and_off([] { return with_lookup(); }, two_tokens);
  check_adaptive_and_off([] { return beside_another(); }, two_tokens);
}

TEST_CASE("limits and stop ids end a block where plain decoding would") {
  check_limits([] { return with_lookup(); }, two_tokens);
  check_limits([] { return with_lookup(4); }, two_tokens);  // steps are shorter than a round
  check_limits([] { return beside_another(); }, two_tokens);
  check_limits([] { return beside_another(4); }, two_tokens);
  const Tokens prompt = iota_tokens(10);
  for (const int32_t stop : {5, 9}) {
    GenerateOptions options = fixed(two_tokens(60));
    options.stop_token_ids = {stop};
    for (const uint32_t min_tokens : {0u, 7u, 8u, 9u}) {
      options.min_tokens = min_tokens;
      Fixture f = with_lookup(), beside = beside_another(), plain;
      Session session(f.engine), sharing(beside.engine), expected(plain.engine);
      const GenerateResult a = session.generate(prompt, options), b = expected.generate(prompt, options);
      const GenerateResult c = sharing.generate(prompt, options);
      CHECK(a.token_ids == b.token_ids && c.token_ids == b.token_ids);
      CHECK(a.stop_token_id == stop && c.stop_token_id == stop);
      CHECK_EQ(sharing.num_cached_tokens(), session.num_cached_tokens());
      CHECK_EQ(stats_of(c).num_accepted_tokens, stats_of(a).num_accepted_tokens);
    }
  }
}

TEST_CASE("a second turn looks up in the whole conversation, a failed step leaves a usable session") {
  const Tokens prompt = iota_tokens(12);
  for (const auto& make : {with_lookup, beside_another}) {
    Fixture f = make(16), g = with_lookup();
    Session session(f.engine), fresh(g.engine);
    const GenerateResult first = session.generate(prompt, fixed(two_tokens(50)));
    const Tokens second = prompt + first.token_ids + iota_tokens(4, 3);
    const GenerateResult turn = session.generate(second, fixed(two_tokens(50)));
    CHECK(turn.stats.num_cached_tokens > 50);
    CHECK(turn.token_ids == reference(second, two_tokens(50)));
    CHECK_EQ(stats_of(turn).num_accepted_tokens,
             stats_of(fresh.generate(second, fixed(two_tokens(50)))).num_accepted_tokens);
    CHECK(stats_of(turn).num_accepted_tokens > 10);
    uint32_t num_steps = 0;
    f.executor->on_step = [&] {
      if (++num_steps == 5) throw std::runtime_error("no progress");
    };
    bool was_thrown = false;
    try {
      session.generate(prompt, fixed(two_tokens(50)));
    } catch (const std::runtime_error&) {
      was_thrown = true;
    }
    CHECK(was_thrown);
    f.executor->on_step = nullptr;
    CHECK(session.generate(prompt, fixed(two_tokens(50))).token_ids == first.token_ids);
  }
}

TEST_CASE("rounds beside others draft as those alone do, but not where every draft changes what is counted") {
  Fixture f = with_lookup();
  f.executor->joins = true;
  CHECK(f.engine->joins_steps());
  Session session(f.engine);
  const Tokens prompt = iota_tokens(12), expected = reference(prompt, two_tokens(90));
  const DraftStats alone = stats_of(session.generate(prompt, fixed(two_tokens(90))));
  CHECK_EQ(alone.num_rounds + alone.num_accepted_tokens, 89u);
  std::atomic<uint32_t>& num_sharing = f.engine->impl().num_sharing;
  ++num_sharing;  // somebody else
  GenerateOptions options = fixed(two_tokens(90));
  options.want_rounds = true;
  const GenerateResult beside = session.generate(prompt, options);
  CHECK(beside.token_ids == expected);
  CHECK_EQ(stats_of(beside).num_rounds, alone.num_rounds);
  CHECK_EQ(beside.stats.num_steps, alone.num_rounds);
  CHECK(stats_of(beside).width_histogram == alone.width_histogram);
  check_sums(beside);
  options.sampling.repetition_penalty = 1.2f;
  const GenerateResult counting = session.generate(prompt, options);
  CHECK(counting.token_ids == reference(prompt, options));
  CHECK_EQ(stats_of(counting).num_draft_tokens, 0u);
  check_sums(counting);
  uint32_t num_steps = 0;
  f.executor->on_step = [&] {  // the other one comes and goes
    if (++num_steps % 7 == 0) num_sharing = num_steps % 2 ? 1 : 2;
  };
  const GenerateResult mixed = session.generate(prompt, options, [](const TokenEvent&) { return true; });
  CHECK(mixed.token_ids == reference(prompt, options));
  CHECK(stats_of(mixed).num_accepted_tokens > 5);
  CHECK_EQ(stats_of(mixed).num_rounds + stats_of(mixed).num_accepted_tokens, 89u);
}

TEST_CASE("sessions of several threads share steps with drafts of each, and each gets what it gets alone") {
  for (const bool all_fixed : {true, false}) {
    Fixture f = beside_another();
    f.executor->on_step = [] { std::this_thread::sleep_for(std::chrono::microseconds(300)); };
    std::vector<GenerateResult> results(4);
    const auto options_of = [all_fixed](uint32_t i) {
      GenerateOptions options = two_tokens(60);
      options.sampling.temperature = i % 2 ? 0.8f : 0.0f;
      options.sampling.seed = i;
      if (i == 3) options.sampling.repetition_penalty = 1.3f;
      options.want_rounds = true;
      return i == 2 && !all_fixed ? options : fixed(options);
    };
    std::vector<std::thread> threads;
    for (uint32_t i = 0; i < 4; ++i)
      threads.emplace_back([&, i] {
        Session session(f.engine, {.sequence_id = i});
        results[i] = session.generate(iota_tokens(5 + i), options_of(i));
      });
    for (std::thread& thread : threads) thread.join();
    for (uint32_t i = 0; i < 4; ++i) {
      CHECK(results[i].token_ids == reference(iota_tokens(5 + i), options_of(i), i));
      check_sums(results[i]);
      // What an adaptive one can pay for, also of others' drafts, hangs on how long steps happened to take.
      if (all_fixed) CHECK_EQ(stats_of(results[i]).num_accepted_tokens > 5, i != 3);
    }
    if (all_fixed) CHECK(*std::ranges::max_element(f.executor->step_sizes) > 8);  // more than a round of one has
  }
}

TEST_CASE("rows behind a draft that is not confirmed are not drawn in steps that others share") {
  for (const float temperature : {0.0f, 0.8f}) {
    Fixture f = beside_another();
    Session session(f.engine);
    GenerateOptions options = fixed(two_tokens(90));
    options.sampling.temperature = temperature;
    options.sampling.sample_top_p = 0.9f;
    const GenerateResult result = session.generate(iota_tokens(12), options);
    CHECK(result.token_ids == reference(iota_tokens(12), options));
    CHECK(stats_of(result).num_draft_tokens > stats_of(result).num_accepted_tokens + 40);
    CHECK_EQ(f.executor->num_drawn, 90u);  // no row but those of its tokens
  }
}

TEST_CASE("a session in its callback does not keep others from drafting, and is counted again after it") {
  Fixture f = with_lookup();
  f.executor->joins = true;
  Session a(f.engine), b(f.engine);
  const Tokens prompt = iota_tokens(12), expected = reference(prompt, two_tokens(90));
  uint32_t num_events = 0;
  GenerateResult inner;
  const GenerateResult outer = a.generate(prompt, fixed(two_tokens(90)), [&](const TokenEvent&) {
    if (++num_events == 20) inner = b.generate(prompt, fixed(two_tokens(40)));
    CHECK_EQ(f.engine->impl().num_sharing.load(), 0u);
    return true;
  });
  CHECK(outer.token_ids == expected);
  CHECK(inner.token_ids == Tokens(expected.begin(), expected.begin() + 40));
  CHECK_EQ(stats_of(inner).num_rounds + stats_of(inner).num_accepted_tokens, 39u);
  bool was_thrown = false;
  try {
    a.generate(prompt, fixed(two_tokens(90)), [&](const TokenEvent&) -> bool { throw std::runtime_error("callback"); });
  } catch (const std::runtime_error&) {
    was_thrown = true;
  }
  CHECK(was_thrown);
  CHECK_EQ(f.engine->impl().num_sharing.load(), 0u);
}

TEST_CASE("sessions of several threads, with steps and rounds in any order, keep their texts") {
  Fixture f = with_lookup();
  f.executor->joins = true;
  std::vector<Tokens> tokens(4);
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      Session session(f.engine);
      tokens[i] = session.generate(iota_tokens(5 + i), fixed(two_tokens(30 + 40 * i))).token_ids;
    });
  for (std::thread& thread : threads) thread.join();
  for (uint32_t i = 0; i < 4; ++i) CHECK(tokens[i] == reference(iota_tokens(5 + i), two_tokens(30 + 40 * i)));
}

TEST_CASE("stop strings, an end by the caller and logits that are not finite") {
  const std::filesystem::path vocabulary = write_vocabulary();
  const Tokens prompt = iota_tokens(10), expected_ids = reference(prompt, two_tokens(60));
  Fixture plain, f = with_lookup(), g = beside_another();
  Session expected(plain.engine), session(f.engine), sharing(g.engine);
  for (Session* each : {&expected, &session, &sharing}) each->load_vocabulary(vocabulary);
  const std::string text = expected.generate(prompt, two_tokens(60)).text;
  uint32_t num_stopped = 0;
  for (size_t at = 3; at + 4 < text.size(); at += 3) {
    GenerateOptions options = two_tokens(60);
    options.stop = {text.substr(at, 4)};
    options.want_rounds = true;
    const GenerateResult a = expected.generate(prompt, options), b = session.generate(prompt, fixed(options));
    CHECK_EQ(b.text, a.text);
    const GenerateResult c = sharing.generate(prompt, fixed(options));
    CHECK_EQ(c.text, a.text);
    CHECK(b.token_ids == a.token_ids && c.token_ids == a.token_ids);
    check_sums(b);
    check_sums(c);
    num_stopped += b.finish_reason == FinishReason::stop;
  }
  CHECK(num_stopped > 5);
  uint32_t num_events = 0;
  for (auto [engine, one] : {std::pair(&f, &session), std::pair(&g, &sharing)}) {
    num_events = 0;
    const GenerateResult ended = one->generate(prompt, fixed(two_tokens(60)), [&](const TokenEvent&) { return ++num_events < 9; });
    CHECK(ended.token_ids == Tokens(expected_ids.begin(), expected_ids.begin() + 9));
    uint32_t num_steps = 0;
    engine->executor->on_step = [&] { engine->executor->broken = ++num_steps >= 4; };
    CHECK_THROWS(internal, "finite", one->generate(prompt, fixed(two_tokens(50))));
    engine->executor->on_step = nullptr;
    engine->executor->broken = false;
    CHECK(one->generate(prompt, fixed(two_tokens(60))).token_ids == expected_ids);
    one->reset();
    CHECK(one->generate(prompt, fixed(two_tokens(60))).token_ids == expected_ids);
  }
}

TEST_CASE("on the CPU and the reference, rounds with lookups leave the tokens of plain steps") {
  for (const char* device : {"cpu", "cpu-generic", "ref"}) {
    EngineOptions options;
    options.device = device;
    options.num_threads = 2;
    const auto plain = Engine::synthetic(test_configs::tiny(), 3, options);
    options.draft = "ngram";
    const auto engine = Engine::synthetic(test_configs::tiny(), 3, options);
    CHECK_EQ(engine->max_draft_tokens(), 7u);
    CHECK_EQ(plain->max_draft_tokens(), 0u);
    CHECK(engine->draft_config() == nullptr);
    CHECK_EQ(engine->joins_steps(), plain->joins_steps());
    Session session(engine), expected(plain);
    for (const float temperature : {0.0f, 0.9f}) {
      GenerateOptions generate = fixed(greedy(60));
      generate.sampling.logit_bias = {{5, 20.0f}, {9, 20.0f}, {11, 20.0f}};
      generate.sampling.temperature = temperature;
      generate.sampling.seed = 5;
      const Tokens prompt = {3, 1, 4, 1, 5, 9, 2, 6};
      const GenerateResult result = session.generate(prompt, generate);
      CHECK(result.token_ids == expected.generate(prompt, generate).token_ids);
      CHECK(stats_of(result).num_accepted_tokens > 5);
      generate.draft.mode = DraftOptions::Mode::adaptive;
      CHECK(session.generate(prompt, generate).token_ids == result.token_ids);
      if (!engine->joins_steps()) continue;
      engine->impl().num_sharing = 1;  // rounds are steps that others may share
      generate.draft.mode = DraftOptions::Mode::fixed;
      std::array<GenerateResult, 3> shared;
      std::vector<std::thread> threads;
      for (GenerateResult& each : shared)
        threads.emplace_back([&] { each = Session(engine).generate(prompt, generate); });
      for (std::thread& thread : threads) thread.join();
      for (const GenerateResult& each : shared) {
        CHECK(each.token_ids == result.token_ids);
        CHECK_EQ(stats_of(each).num_accepted_tokens, stats_of(result).num_accepted_tokens);
      }
      engine->impl().num_sharing = 0;
    }
  }
}

TEST_CASE("a limit above what a round has is no error, for any model may turn out not to have a draft") {
  Fixture f = with_lookup();
  Session session(f.engine);
  const Tokens prompt = iota_tokens(21);
  const GenerateResult result = session.generate(prompt, fixed(two_tokens(60), 15));
  CHECK(result.token_ids == reference(prompt, two_tokens(60)));
  CHECK(stats_of(result).width_histogram[7] > 0);
}

CHECK_MAIN()
