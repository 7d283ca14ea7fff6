// Generations on a model with a draft: the text is that of plain decoding, whatever ends it, and a reused, cut or
// cancelled conversation leaves the draft's context as good as a fresh one's.
#include "drafted_session.h"

#include "core/checks.h"
#include "engine/sequence.h"

#include <set>
#include <stdexcept>
#include <thread>

using namespace fake_engine;

namespace {

Fixture with_draft(uint32_t chunk_tokens = 16) { return Fixture(chunk_tokens, 4, Drafts::model); }

}  // namespace

TEST_CASE("greedy tokens equal plain decoding for every number of drafts") {
  const Tokens prompt = iota_tokens(21);
  const Tokens expected = reference(prompt, greedy(150));
  for (uint32_t n = 1; n < kBlock; ++n) {
    Fixture f = with_draft();
    Session session(f.engine);
    const GenerateResult result = session.generate(prompt, fixed(greedy(150), n));
    CHECK(result.token_ids == expected);
    CHECK(stats_of(result).num_rounds < 149u);  // the fake draft is right often enough to matter
    CHECK_EQ(stats_of(result).num_rounds + stats_of(result).num_accepted_tokens, 149u);
    CHECK_EQ(result.stats.num_steps, stats_of(result).num_rounds);
  }
}

TEST_CASE("sampled tokens equal plain decoding with the same seed") {
  for (const float penalty : {1.0f, 1.3f}) {
    GenerateOptions options = greedy(120);
    options.sampling.temperature = 0.4f;
    options.sampling.sample_top_k = 5;
    options.sampling.repetition_penalty = penalty;
    options.sampling.seed = 11;
    const Tokens prompt = iota_tokens(9);
    Fixture f = with_draft();
    Session session(f.engine);
    const GenerateResult result = session.generate(prompt, fixed(options));
    CHECK(result.token_ids == reference(prompt, options));
    CHECK(stats_of(result).num_accepted_tokens > 0);
    options.sampling.seed = 12;
    CHECK(result.token_ids != reference(prompt, options));
  }
}

TEST_CASE("adaptive and off give the same text; off never drafts") {
  check_adaptive_and_off([] { return with_draft(); }, greedy);
}

TEST_CASE("limits end a block where plain decoding would") {
  check_limits([] { return with_draft(); }, greedy);
}

TEST_CASE("stop ids end a block where plain decoding would, min_tokens masks them") {
  const Tokens prompt = iota_tokens(10), longest = reference(prompt, greedy(40));
  for (uint32_t i = 0; i < 24; ++i) {
    GenerateOptions options = fixed(greedy(40));
    options.stop_token_ids = {longest[i]};
    const auto first = size_t(std::find(longest.begin(), longest.end(), longest[i]) - longest.begin());
    Fixture f = with_draft();
    Session session(f.engine);
    const GenerateResult result = session.generate(prompt, options);
    CHECK(result.token_ids == Tokens(longest.begin(), longest.begin() + long(first) + 1));
    CHECK(result.finish_reason == FinishReason::stop);
    CHECK_EQ(result.stop_token_id, longest[i]);

    options.min_tokens = uint32_t(first) + 4;
    Fixture plain;
    Session plain_session(plain.engine);
    CHECK(session.generate(prompt, options).token_ids == plain_session.generate(prompt, options).token_ids);
  }
}

TEST_CASE("stop strings cut the text at the same byte; what ran ahead is not shown") {
  const std::filesystem::path vocabulary = write_vocabulary();
  const Tokens prompt = iota_tokens(10);
  Fixture plain, f = with_draft();
  Session expected(plain.engine), session(f.engine);
  expected.load_vocabulary(vocabulary);
  session.load_vocabulary(vocabulary);
  const std::string text = expected.generate(prompt, greedy(60)).text;
  CHECK(text.size() > 20);
  uint32_t num_stopped = 0;
  for (size_t at = 3; at + 2 < text.size(); ++at) {
    GenerateOptions options = greedy(60);
    options.stop = {text.substr(at, 2)};
    options.want_rounds = true;
    if ((text[at] | text[at + 1]) & 0x80) continue;  // half a character
    ++num_stopped;
    const GenerateResult a = expected.generate(prompt, options);
    Tokens events;
    std::string streamed;
    const GenerateResult b = session.generate(prompt, fixed(options), [&](const TokenEvent& event) {
      events.insert(events.end(), event.token_ids.begin(), event.token_ids.end());
      streamed += event.text;
      return true;
    });
    CHECK_EQ(b.text, a.text);
    CHECK(b.token_ids == a.token_ids);
    CHECK(events == a.token_ids);
    CHECK_EQ(streamed, a.text);
    CHECK(b.finish_reason == FinishReason::stop);
    check_sums(b);
  }
  CHECK(num_stopped > 10);
}

TEST_CASE("a second turn, a cut prefix and a cancel leave acceptance unchanged") {
  const Tokens prompt = iota_tokens(30);
  const auto fresh = [&](const Tokens& tokens) {
    Fixture f = with_draft();
    Session session(f.engine);
    return stats_of(session.generate(tokens, fixed(greedy(60)))).num_accepted_tokens;
  };
  Fixture f = with_draft();
  Session session(f.engine);
  const GenerateResult first = session.generate(prompt, fixed(greedy(60)));
  const Tokens second = prompt + first.token_ids + iota_tokens(40, 5);
  const GenerateResult turn = session.generate(second, fixed(greedy(60)));
  CHECK(turn.stats.num_cached_tokens > 60);
  CHECK_EQ(stats_of(turn).num_accepted_tokens, fresh(second));

  const Tokens cut = Tokens(second.begin(), second.begin() + 125) + iota_tokens(9, 3);
  const GenerateResult other = session.generate(cut, fixed(greedy(60)));
  CHECK(other.token_ids == reference(cut, greedy(60)));
  CHECK_EQ(stats_of(other).num_accepted_tokens, fresh(cut));

  uint32_t num_events = 0;
  session.generate(prompt, fixed(greedy(60)), [&](const TokenEvent&) { return ++num_events < 17; });
  GenerateOptions off = greedy(40);  // its features wait until someone drafts
  off.draft.mode = DraftOptions::Mode::off;
  session.generate(prompt, off);
  const GenerateResult again = session.generate(prompt, fixed(greedy(60)));
  CHECK(again.token_ids == first.token_ids);
  CHECK_EQ(stats_of(again).num_accepted_tokens, stats_of(first).num_accepted_tokens);
  CHECK(stats_of(first).num_accepted_tokens > 20);
}

TEST_CASE("a cancel by another thread, inside the rounds, leaves acceptance unchanged") {
  const Tokens prompt = iota_tokens(30), expected = reference(prompt, greedy(60));
  Fixture fresh = with_draft();
  Session untouched(fresh.engine);
  const uint64_t num_accepted = stats_of(untouched.generate(prompt, fixed(greedy(60)))).num_accepted_tokens;
  for (const bool has_callback : {false, true})  // with one, rounds run one at a time
    for (const uint32_t last_round : {1u, 4u, 9u}) {
      Fixture f = with_draft();
      Session session(f.engine);
      TokenCallback callback;
      if (has_callback) callback = [](const TokenEvent&) { return true; };
      uint32_t num_steps = 0;
      f.executor->on_step = [&] {  // the prompt takes two
        if (++num_steps == 2 + last_round) std::thread([&] { session.cancel(); }).join();
      };
      GenerateOptions options = fixed(greedy(60));
      options.want_rounds = true;
      const GenerateResult cut = session.generate(prompt, options, callback);
      f.executor->on_step = nullptr;
      CHECK(cut.finish_reason == FinishReason::abort);
      CHECK(stats_of(cut).num_drafted_rounds >= last_round && stats_of(cut).num_drafted_rounds <= last_round + 1);
      CHECK(cut.token_ids == Tokens(expected.begin(), expected.begin() + long(cut.token_ids.size())));
      check_sums(cut);
      const GenerateResult again = session.generate(prompt, fixed(greedy(60)));
      CHECK(again.token_ids == expected);
      CHECK_EQ(stats_of(again).num_accepted_tokens, num_accepted);
    }
  CHECK(num_accepted > 20);
}

TEST_CASE("long plain stretches keep the draft's context current") {
  Fixture f = with_draft(), g = with_draft();
  Session session(f.engine), fresh(g.engine);
  GenerateOptions off = greedy(200);
  off.draft.mode = DraftOptions::Mode::off;
  const Tokens prompt = iota_tokens(20);
  const Tokens text = prompt + session.generate(prompt, off).token_ids;
  const GenerateResult drafted = session.generate(text, fixed(greedy(50)));
  CHECK(drafted.stats.num_cached_tokens >= 218);
  CHECK_EQ(stats_of(drafted).num_accepted_tokens,
           stats_of(fresh.generate(text, fixed(greedy(50)))).num_accepted_tokens);
  CHECK(stats_of(drafted).num_accepted_tokens > 10);
}

TEST_CASE("a callback that throws, and a step that fails, leave a usable session") {
  const Tokens prompt = iota_tokens(12), expected = reference(prompt, greedy(50));
  Fixture f = with_draft();
  Session session(f.engine);
  uint32_t num_events = 0;
  bool was_thrown = false;
  try {
    session.generate(prompt, fixed(greedy(50)), [&](const TokenEvent&) {
      if (++num_events == 9) throw std::runtime_error("callback");
      return true;
    });
  } catch (const std::runtime_error& error) {
    was_thrown = std::string(error.what()) == "callback";
  }
  CHECK(was_thrown);
  CHECK(session.generate(prompt, fixed(greedy(50))).token_ids == expected);
  uint32_t num_steps = 0;
  f.executor->on_step = [&] {
    if (++num_steps == 5) fail(ErrorCode::timeout, "fake", "no progress");
  };
  CHECK_THROWS(timeout, "no progress", session.generate(prompt, fixed(greedy(50))));
  f.executor->on_step = nullptr;
  CHECK(session.generate(prompt, fixed(greedy(50))).token_ids == expected);
}

TEST_CASE("positions whose features a failed generation may have overwritten run again") {
  const auto with_long_windows = [] {  // features are what is overwritten first
    Fixture f = with_draft();
    f.engine->impl().config.layers[0].window_tokens = 0;
    f.engine->impl().draft->window_tokens = {200};
    return f;
  };
  const Tokens prompt = iota_tokens(30);  // two steps; of the first one there is context
  GenerateOptions off = greedy(200);
  off.draft.mode = DraftOptions::Mode::off;
  const Fixture g = with_long_windows();
  Session fresh(g.engine);
  const GenerateResult expected = fresh.generate(prompt, fixed(greedy(40)));
  const Engine::Impl& engine = g.engine->impl();
  const uint32_t num_kept = Sequence(engine.config, engine.draft_config(), 300, 16).cache().feature_rows() + 16;
  for (const uint32_t num_written : {num_kept - 1, num_kept, num_kept + 1, num_kept + 2}) {
    const Fixture f = with_long_windows();
    Session session(f.engine);
    uint32_t num_steps = 0;
    f.executor->on_step = [&] {  // rounds note a whole block behind their position
      if (++num_steps == 3 + num_written - kBlock - 30) fail(ErrorCode::timeout, "fake", "no progress");
    };
    CHECK_THROWS(timeout, "no progress", session.generate(prompt, off));
    f.executor->on_step = nullptr;
    const GenerateResult again = session.generate(prompt, fixed(greedy(40)));
    CHECK_EQ(again.stats.num_cached_tokens, num_written > num_kept ? 16u : 29u);
    CHECK(again.token_ids == expected.token_ids);
    CHECK_EQ(stats_of(again).num_accepted_tokens, stats_of(expected).num_accepted_tokens);
  }
}

TEST_CASE("logits that are not finite are an error, and the next generation starts afresh") {
  const Tokens prompt = iota_tokens(12);
  Fixture f = with_draft();
  Session session(f.engine);
  uint32_t num_steps = 0;
  f.executor->on_step = [&] { f.executor->broken = ++num_steps >= 4; };
  CHECK_THROWS(internal, "finite", session.generate(prompt, fixed(greedy(50))));
  f.executor->on_step = nullptr;
  f.executor->broken = false;
  const GenerateResult result = session.generate(prompt, fixed(greedy(50)));
  CHECK(result.token_ids == reference(prompt, greedy(50)));
  CHECK_EQ(result.stats.num_cached_tokens, 0u);
}

TEST_CASE("tokens of rounds have their room before the first round") {
  for (const uint64_t max_tokens : {uint64_t{40}, ~uint64_t{0}}) {
    Fixture f = with_draft();
    Engine::Impl& engine = f.engine->impl();
    Sequence sequence(engine.config, engine.draft_config(), 300, 16);
    StepOutput output;
    sequence.step(engine, iota_tokens(10), {}, nullptr, output);
    const SamplingParams params{.temperature = 0.0f};
    RoundRequest request;
    request.params = &params;
    request.max_tokens = max_tokens;
    request.max_context = 300;
    request.max_context_rows = engine.round_plan->options().max_context_rows;
    DraftWidth width({.mode = DraftOptions::Mode::fixed}, kBlock);
    RoundState state(request, width, kVocab, kBlock);
    state.num_output = 1;
    std::set<size_t> capacities;
    sequence.run_rounds(engine, state, [&](const SampleResult&) {
      capacities.insert(sequence.token_ids().capacity());
      return true;
    });
    CHECK_EQ(sequence.size(), max_tokens == 40 ? 49u : 300u);
    CHECK_EQ(capacities.size(), 1u);
    CHECK(*capacities.begin() <= 300);
  }
}

TEST_CASE("two sessions of one engine take turns between rounds") {
  Fixture f = with_draft();
  Session a(f.engine), b(f.engine);
  const Tokens prompt = iota_tokens(12), expected = reference(prompt, greedy(120));
  Tokens tokens;
  std::thread other([&] { tokens = b.generate(prompt, fixed(greedy(120))).token_ids; });
  CHECK(a.generate(prompt, fixed(greedy(120))).token_ids == expected);
  other.join();
  CHECK(tokens == expected);
}

TEST_CASE("a callback may use the engine: another session, tracing") {
  Fixture f = with_draft();
  Session a(f.engine), b(f.engine);
  const Tokens prompt = iota_tokens(12), expected = reference(prompt, greedy(30));
  uint32_t num_events = 0;
  const GenerateResult result = a.generate(prompt, fixed(greedy(30)), [&](const TokenEvent&) {
    if (++num_events == 5) {
      CHECK(b.generate(prompt, fixed(greedy(30))).token_ids == expected);
      f.engine->set_tracing(false);
    }
    return true;
  });
  CHECK(result.token_ids == expected);
  CHECK_EQ(num_events, 30u);
}

TEST_CASE("nothing runs past a token at which the caller stops") {
  Fixture f = with_draft();
  Session session(f.engine);
  GenerateOptions options = fixed(greedy(60));
  options.want_rounds = true;
  for (uint32_t last = 2; last < 20; ++last) {
    uint32_t num_events = 0;
    const GenerateResult result =
        session.generate(iota_tokens(12), options, [&](const TokenEvent&) { return ++num_events < last; });
    CHECK_EQ(result.token_ids.size(), last);
    CHECK(result.stats.num_steps < last);
    CHECK(session.num_cached_tokens() < 12 + last + kBlock);
    check_sums(result);
  }
}

TEST_CASE("rounds are told of when asked for: rows, tokens, experts and time") {
  const Tokens prompt = iota_tokens(10);
  for (const bool has_callback : {false, true}) {  // with one, rounds run one at a time
    Fixture f = with_draft();
    Session session(f.engine);
    GenerateOptions options = fixed(greedy(60));
    options.want_rounds = true;
    TokenCallback callback;
    if (has_callback) callback = [](const TokenEvent&) { return true; };
    const GenerateResult result = session.generate(prompt, options, callback);
    CHECK_EQ(result.rounds.size(), stats_of(result).num_rounds);
    uint64_t num_tokens = 1;
    std::array<uint64_t, DraftStats::kMaxDrafts + 1> widths{};
    for (const RoundStats& round : result.rounds) {
      num_tokens += round.num_tokens;
      ++widths[round.num_rows - 1];
      CHECK_EQ(round.num_active_experts, 3.0);
    }
    CHECK_EQ(num_tokens, 60u);
    CHECK(widths == stats_of(result).width_histogram);
    check_sums(result);
    options.want_rounds = false;
    session.reset();
    CHECK(session.generate(prompt, options).rounds.empty());
  }
}

TEST_CASE("draft options are checked") {
  Fixture f = with_draft();
  Session session(f.engine);
  CHECK_THROWS(invalid_argument, "num_draft_tokens: expected 0..7",
               session.generate(iota_tokens(3), fixed(greedy(4), kBlock)));
}

CHECK_MAIN()
