// What sessions generate, on the fake engine, against its model.
#include "fake_engine.h"

#include <cmath>
#include <numeric>

using namespace fake_engine;

TEST_CASE("greedy and sampled output equal the model, for every chunk size") {
  const Tokens prompt = iota_tokens(37);
  GenerateOptions sampled = greedy(30);
  sampled.sampling = {.temperature = 0.8f, .sample_top_k = 20, .sample_top_p = 0.95f,
                      .repetition_penalty = 1.2f, .seed = 5};
  for (const uint32_t chunk : {1u, 3u, 16u, 37u, 64u}) {
    const Fixture f(chunk);
    Session session(f.engine, {.sequence_id = 9});
    CHECK(session.generate(prompt, greedy(30)).token_ids == reference(prompt, greedy(30)));
    session.reset();
    CHECK(session.generate(prompt, sampled).token_ids == reference(prompt, sampled, 9));
    CHECK(reference(prompt, sampled, 9) != reference(prompt, sampled, 8));  // control
  }
  Tokens other = prompt;
  other[0] ^= 1;
  CHECK(reference(other, greedy(30)) != reference(prompt, greedy(30)));  // control: history counts
}

TEST_CASE("prefix reuse: the same tokens as from scratch, fewer prefilled") {
  const Fixture f;
  Session session(f.engine, {.max_context = 200});
  const Tokens prompt = iota_tokens(40);
  const Tokens first = session.generate(prompt, greedy(10)).token_ids;
  CHECK_EQ(session.num_cached_tokens(), 49u);  // the last token was not run
  const Tokens longer = prompt + first + iota_tokens(5, 3);
  f.executor->step_sizes.clear();
  const GenerateResult second = session.generate(longer, greedy(10));
  CHECK(second.token_ids == reference(longer, greedy(10)));
  CHECK_EQ(second.stats.num_cached_tokens, 49u);
  CHECK_EQ(f.executor->step_sizes[0], 6u);
  const GenerateResult again = session.generate(longer, greedy(10));  // whole prompt cached
  CHECK(again.token_ids == second.token_ids);
  CHECK_EQ(again.stats.num_cached_tokens, longer.size() - 1);
}

TEST_CASE("prefix reuse: rings that have moved on are not trusted") {
  const Fixture f;
  const Tokens base = iota_tokens(30);
  uint32_t state = 3;
  int num_reused = 0, num_dropped = 0;
  Session session(f.engine, {.max_context = 160});
  for (int round = 0; round < 200; ++round) {
    state = state * 1664525u + 1013904223u;
    const uint32_t kept = 1 + (state >> 8) % 30, extra = (state >> 16) % 60;
    const Tokens prompt = Tokens(base.begin(), base.begin() + kept) + iota_tokens(extra, round);
    const uint32_t count = 1 + (state >> 24) % 40;
    const GenerateResult result = session.generate(prompt, greedy(count));
    CHECK(result.token_ids == reference(prompt, greedy(count)));
    num_reused += result.stats.num_cached_tokens > 0;
    num_dropped += result.stats.num_cached_tokens == 0;
  }
  CHECK(num_reused > 20 && num_dropped > 20);  // both happened
}

TEST_CASE("prefix reuse: rows that were overwritten stay lost after a shorter turn") {
  const Fixture f;  // rings of 32 rows, 8 of which a continuation reads
  const Tokens prompt = iota_tokens(60);
  Session session(f.engine);
  const Tokens history = prompt + session.generate(prompt, greedy(41)).token_ids;
  CHECK_EQ(session.num_cached_tokens(), 100u);
  for (uint32_t shorter = 99; shorter >= 60; --shorter) {
    session.reset();
    session.generate(prompt, greedy(41));
    const Tokens first(history.begin(), history.begin() + 95);
    CHECK_EQ(session.generate(first, greedy(1)).stats.num_cached_tokens, 94u);
    const Tokens second(history.begin(), history.begin() + shorter);
    CHECK(session.generate(second, greedy(5)).token_ids == reference(second, greedy(5)));
  }
}

TEST_CASE("stop tokens, length and the end of the context") {
  const Fixture f;
  const Tokens prompt = iota_tokens(12);
  const Tokens plain = reference(prompt, greedy(40));
  Session session(f.engine, {.max_context = 20});
  GenerateOptions options = greedy(0);
  GenerateResult result = session.generate(prompt, options);
  CHECK_EQ(result.token_ids.size(), 8u);  // capped: 12 + 8 = 20
  CHECK(result.finish_reason == FinishReason::length);
  CHECK_EQ(session.generate(prompt, greedy(1000)).token_ids.size(), 8u);
  CHECK_EQ(session.generate(prompt, greedy(3)).token_ids.size(), 3u);

  options.stop_token_ids = {plain[4], 1000 % int(kVocab)};
  const auto first = size_t(std::find(plain.begin(), plain.end(), plain[4]) - plain.begin());
  result = session.generate(prompt, options);
  CHECK(result.finish_reason == FinishReason::stop);
  CHECK_EQ(result.stop_token_id, plain[4]);
  CHECK_EQ(result.token_ids.size(), first + 1);
  CHECK_EQ(finish_reason_name(result.finish_reason), "stop");

  f.engine->impl().config.eos_token_ids = {plain[2], -7, 1 << 20};
  result = session.generate(prompt, greedy(0));
  CHECK(result.finish_reason == FinishReason::length);  // ignore_eos
  options = greedy(0);
  options.ignore_eos = false;
  CHECK_EQ(session.generate(prompt, options).stop_token_id, plain[2]);
  options.min_tokens = 5;
  result = session.generate(prompt, options);
  CHECK(result.token_ids.size() >= 5);
  for (size_t i = 0; i < 5; ++i) CHECK(result.token_ids[i] != plain[2]);
}

TEST_CASE("text: streamed pieces add up, stop strings end it, specials are skipped") {
  const Fixture f;
  const Tokens prompt = iota_tokens(5);
  const auto text_of = [](const Tokens& ids) {
    std::string text;
    for (const int32_t id : ids) {
      if (id < 26) text += char('a' + id);
      if (id == 26) text += ' ';
    }
    return text;
  };
  Session session(f.engine);
  session.load_vocabulary(write_vocabulary());
  GenerateOptions options = greedy(120);
  options.sampling.temperature = 2;
  f.engine->impl().config.eos_token_ids = {};
  std::string streamed;
  Tokens ids;
  const auto collect = [&](const TokenEvent& event) {
    streamed += event.text;
    ids = ids + Tokens(event.token_ids.begin(), event.token_ids.end());
    return true;
  };
  // Tokens 27 and 28 are halves of a character: the reference leaves out what is not ASCII.
  const auto run = [&] {
    streamed.clear();
    ids.clear();
    return session.generate(prompt, options, collect);
  };
  const GenerateResult plain = run();
  CHECK(ids == plain.token_ids);
  CHECK_EQ(streamed, plain.text);
  std::string letters;
  for (const char c : plain.text) if (uint8_t(c) < 0x80) letters += c;
  CHECK_EQ(letters, text_of(plain.token_ids));
  CHECK(letters.size() > 20);

  const std::string stop = letters.substr(9, 2);
  options.stop = {stop, "\xc3\xa9never"};
  const GenerateResult stopped = run();
  CHECK(stopped.finish_reason == FinishReason::stop);
  CHECK_EQ(stopped.stop_string, stop);
  CHECK_EQ(stopped.stop_token_id, -1);
  CHECK_EQ(stopped.text, plain.text.substr(0, plain.text.find(stop)));
  CHECK_EQ(streamed, stopped.text);
  CHECK(stopped.token_ids.size() < plain.token_ids.size());
  options.include_stop_str_in_output = true;
  CHECK_EQ(run().text, stopped.text + stop);

  options = greedy(120);
  options.sampling.temperature = 2;
  options.stop_token_ids = {plain.token_ids[20]};  // its text belongs to the stop
  const GenerateResult by_token = run();
  CHECK_EQ(by_token.stop_token_id, plain.token_ids[20]);
  Tokens without_stop = by_token.token_ids;
  without_stop.pop_back();
  letters.clear();
  for (const char c : by_token.text) if (uint8_t(c) < 0x80) letters += c;
  CHECK_EQ(letters, text_of(without_stop));
  CHECK_EQ(streamed, by_token.text);
}

TEST_CASE("a stop string may end with the token after min_tokens, not before") {
  const Fixture f;
  const Tokens prompt = iota_tokens(5);
  Session session(f.engine);
  session.load_vocabulary(write_vocabulary());
  GenerateOptions options = greedy(40);
  const Tokens plain = session.generate(prompt, options).token_ids;
  uint32_t num_stops = 0;
  for (uint32_t i = 0; i + 1 < plain.size(); ++i) {
    if (plain[i] >= 26) continue;  // no letter
    ++num_stops;
    options.stop = {std::string(1, char('a' + plain[i]))};
    options.min_tokens = i;
    const GenerateResult result = session.generate(prompt, options);
    CHECK_EQ(result.token_ids.size(), i + 1u);
    CHECK_EQ(result.stop_string, options.stop[0]);
    options.min_tokens = i + 1;
    CHECK(session.generate(prompt, options).token_ids.size() > i + 1);
  }
  CHECK(num_stops > 10);
}

TEST_CASE("logits: every row, whatever the step") {
  const Fixture f;
  const Tokens tokens = iota_tokens(45);
  std::vector<float> want = {-1.0f};
  for (size_t i = 1; i <= tokens.size(); ++i) {
    const auto row = model_logits(Tokens(tokens.begin(), tokens.begin() + long(i)));
    want.insert(want.end(), row.begin(), row.end());
  }
  Session session(f.engine);
  session.generate(iota_tokens(9, 1), greedy(3));
  for (const uint32_t step : {0u, 1u, 3u, 16u}) {
    std::vector<float> out = {-1.0f};  // appended to
    session.logits(tokens, out, step);
    CHECK(out == want);
  }
  std::vector<float> out;
  CHECK_THROWS(invalid_argument, "step_tokens: expected 0..16, got 17",
               session.logits(tokens, out, 17));
  CHECK_THROWS(invalid_argument, "tokens: expected at least one", session.logits({}, out));
  CHECK_THROWS(capacity, "300", session.logits(iota_tokens(301), out));
  CHECK(session.generate(tokens, greedy(8)).token_ids == reference(tokens, greedy(8)));
}

TEST_CASE("logprobs and statistics") {
  const Fixture f;
  f.engine->impl().bandwidth_gbs = 10.0;
  const Tokens prompt = iota_tokens(20);
  Session session(f.engine);
  GenerateOptions options = greedy(6);
  CHECK(session.generate(prompt, options).logprobs.empty());
  options.sampling.num_logprobs = 3;
  options.sampling.want_logprob = true;
  const GenerateResult result = session.generate(prompt, options);
  CHECK_EQ(result.logprobs.size(), 6u);
  for (size_t i = 0; i < result.logprobs.size(); ++i) {
    CHECK_EQ(result.logprobs[i].alternatives.size(), 3u);
    CHECK_EQ(result.logprobs[i].chosen.token_id, result.token_ids[i]);
    CHECK_EQ(result.logprobs[i].alternatives[0].token_id, result.token_ids[i]);  // greedy
    CHECK_EQ(result.logprobs[i].alternatives[0].logprob, result.logprobs[i].chosen.logprob);
  }
  const GenerationStats& stats = result.stats;
  CHECK_EQ(stats.num_prompt_tokens, 20u);
  CHECK_EQ(stats.num_cached_tokens, 19u);
  CHECK_EQ(stats.num_output_tokens, 6u);
  CHECK_EQ(stats.num_steps, 5u);
  CHECK_EQ(stats.weight_bytes_per_step, 1000.0 + 3 * 10);
  CHECK(stats.ttft_ms > 0 && stats.e2e_ms >= stats.ttft_ms + 5 * stats.tpot_ms * 0.999);
  CHECK(std::abs(stats.decode_tokens_per_s * stats.tpot_ms - 1000) < 1e-6);
  const double gbs = 5 * 1030e-9 / (5e-3 * stats.tpot_ms);
  CHECK(std::abs(stats.decode_gbs - gbs) < 1e-9 * gbs);
  CHECK(std::abs(stats.bandwidth_fraction - stats.decode_gbs / 10) < 1e-12);
}

TEST_CASE("joint distribution of two sampled tokens equals the model's (chi-square)") {
  const Fixture f;
  const Tokens prompt = {1, 2, 3};
  GenerateOptions options = greedy(2);
  options.sampling = {.temperature = 1.0f, .sample_top_k = 3};
  const auto top3 = [&](const Tokens& history) {
    const std::vector<float> logits = model_logits(history);
    std::vector<int32_t> order(kVocab);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return logits[size_t(a)] > logits[size_t(b)]; });
    std::vector<std::pair<int32_t, double>> top;
    double sum = 0;
    for (int i = 0; i < 3; ++i) sum += std::exp(double(logits[size_t(order[size_t(i)])]));
    for (int i = 0; i < 3; ++i)
      top.push_back({order[size_t(i)], std::exp(double(logits[size_t(order[size_t(i)])])) / sum});
    return top;
  };
  constexpr int kRuns = 9000;
  std::vector<Tokens> seen;
  Session session(f.engine);
  for (int i = 0; i < kRuns; ++i) {
    options.sampling.seed = uint64_t(i);
    seen.push_back(session.generate(prompt, options).token_ids);
  }
  double statistic = 0, control = 0;
  for (const auto& [a, pa] : top3(prompt))
    for (const auto& [b, pb] : top3(prompt + Tokens{a})) {
      const double count = double(std::count(seen.begin(), seen.end(), Tokens{a, b}));
      statistic += std::pow(count - kRuns * pa * pb, 2) / (kRuns * pa * pb);
      control += std::pow(count - kRuns * pa / 3, 2) / (kRuns * pa / 3);  // second token uniform
    }
  CHECK(statistic < 26.12);  // chi-square, 8 degrees of freedom, upper tail 1e-3
  CHECK(control > 45);
}

CHECK_MAIN()
