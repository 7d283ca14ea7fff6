// Rounds against plain decoding of the same toy model, token for token; limits, context rows, the ring.
#include "check.h"
#include "round_fixture.h"

#include <algorithm>
#include <limits>
#include <thread>

using namespace round_fixture;

namespace {

constexpr uint32_t kVocab = 40;
constexpr DraftOptions kFixed{.mode = DraftOptions::Mode::fixed};

uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

Logits noise(uint32_t key, float scale) {
  Logits logits(kVocab);
  for (uint32_t i = 0; i < kVocab; ++i) logits[i] = scale * (float(mix(key * 977 + i) % 2048) / 256.0f - 4.0f);
  return logits;
}

Logits target_logits(int32_t token, uint32_t position) { return noise(uint32_t(token) * 131 + position % 7, 0.6f); }

/// A draft that knows the target's greedy text after the anchor, but for `num_wrong` of 10 rows.
Toy toy_model(uint32_t num_wrong) {
  const auto draft = [num_wrong](int32_t anchor, uint32_t position, uint32_t row) {
    int32_t token = anchor;
    Logits logits;
    for (uint32_t t = 0; t < row; ++t) {
      logits = target_logits(token, position + t);
      token = int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
    }
    return mix(position * 16 + row) % 10 < num_wrong ? noise(position * 16 + row, 2.0f) : logits;
  };
  return {kVocab, target_logits, draft};
}

bool same(const SampleResult& a, const SampleResult& b) {
  bool equal = a.token_id == b.token_id && a.logprob == b.logprob && a.num_alternatives == b.num_alternatives;
  for (uint32_t i = 0; equal && i < a.num_alternatives; ++i)
    equal = a.alternatives[i].token_id == b.alternatives[i].token_id &&
            a.alternatives[i].logprob == b.alternatives[i].logprob;
  return equal;
}

bool same(const Output& a, const Output& b) {
  return a.end == b.end && a.counts == b.counts &&
         std::equal(a.tokens.begin(), a.tokens.end(), b.tokens.begin(), b.tokens.end(),
                    [](const auto& x, const auto& y) { return same(x, y); });
}

/// Greedy and sampled, with every parameter that a draw depends on.
std::vector<Start> starts() {
  std::vector<Start> list(5);
  list[0].params.temperature = 0;
  list[1].params = {.temperature = 0.4f, .seed = 3};
  list[2].params = {.temperature = 0.5f, .sample_top_k = 12, .sample_top_p = 0.9f, .min_p = 0.02f, .seed = 4,
                    .num_logprobs = 3, .want_logprob = true};
  list[2].stop_ids = {3, 17, 30};
  list[2].min_tokens = 30;
  list[3].params = {.temperature = 0.4f, .repetition_penalty = 1.3f, .seed = 5};
  list[3].params.logit_bias = {{2, 1.0f}, {5, -2.0f}};
  list[4].params = {.temperature = 0, .repetition_penalty = 1.05f};
  list[4].stop_ids = {9};
  list[4].min_tokens = 100;
  for (size_t i = 0; i < list.size(); ++i) {
    list[i].sequence_id = i;
    list[i].max_tokens = 150 + 7 * i;
    list[i].first = int32_t(3 * i);
    if (list[i].params.repetition_penalty == 1.0f) continue;
    list[i].counts.assign(kVocab, 0);
    list[i].counts[size_t(list[i].first)] = 1;
    list[i].counts[7] = 2;
  }
  return list;
}

/// Histograms and sums that must agree, whatever happened.
void check_stats(const DraftStats& stats, uint64_t num_tokens) {
  uint64_t rounds = 0, widths = 0, accepted = 0, at_pos = 0, drafted = 0;
  for (uint64_t n = 0; n <= DraftStats::kMaxDrafts; ++n) {
    rounds += stats.accepted_histogram[n];
    accepted += n * stats.accepted_histogram[n];
    widths += stats.width_histogram[n];
  }
  for (uint32_t i = 0; i < DraftStats::kMaxDrafts; ++i) {
    at_pos += stats.accepted_at_pos[i];
    drafted += stats.drafted_at_pos[i];
    CHECK(stats.accepted_at_pos[i] <= stats.drafted_at_pos[i]);
  }
  CHECK_EQ(rounds, stats.num_rounds);
  CHECK_EQ(widths, stats.num_rounds);
  CHECK_EQ(stats.num_rounds - stats.width_histogram[0], stats.num_drafted_rounds);
  CHECK_EQ(accepted, stats.num_accepted_tokens);
  CHECK_EQ(at_pos, stats.num_accepted_tokens);
  CHECK_EQ(drafted, stats.num_draft_tokens);
  CHECK_EQ(num_tokens, stats.num_rounds + stats.num_accepted_tokens);
}

}  // namespace

TEST_CASE("the last row proposed decides how many the round verifies, in any order of rows") {
  // Rows 1 and 2 lead by far, row 3 by nothing: after plain rounds of equal cost, two or three are worth verifying.
  const auto logits_of = [](uint32_t row) {
    Logits logits(kVocab, 0.0f);
    logits[row] = row < 3 ? 20.0f : 0.01f;
    return logits;
  };
  const Toy toy{kVocab, target_logits, [&](int32_t, uint32_t, uint32_t row) { return logits_of(row); }};
  Start start;
  start.params.temperature = 0;
  for (const bool backwards : {false, true}) {
    Rounds rounds(toy, start, {}, 8);
    // Plain rounds of 1 ms; every row costs another 0.35 ms.
    for (int i = 0; i < 3; ++i) rounds.width.observe({.ns = 1'000'000});
    for (uint32_t n : {1u, 7u}) rounds.width.observe({.num_drafts = n, .num_accepted = n, .ns = 1'000'000 + 350'000 * n});
    RoundState& state = *rounds.state;
    state.begin();
    CHECK_EQ(state.input.num_tokens, 8u);
    for (uint32_t i = 0; i < 8; ++i) {
      CHECK_EQ(state.input.num_tokens, 8u);
      const uint32_t row = backwards ? 7 - i : i;
      const Logits logits = logits_of(row);
      propose_token(state, row, {logits.data(), kVocab, nullptr});
      if (backwards && row == 1) break;  // row 0 has no draft
    }
    const float leads[] = {20, 20, 0.01f, 0.01f, 0.01f, 0.01f, 0.01f};
    CHECK_EQ(state.input.num_tokens, 1 + rounds.width.narrow(leads));
    CHECK(state.input.num_tokens >= 3 && state.input.num_tokens <= 4);
    CHECK_EQ(state.input.num_logit_rows, state.input.num_tokens);
  }
}

TEST_CASE("argmax drafts: rounds equal plain decoding, token for token, for every block size") {
  for (const uint32_t num_wrong : {0u, 3u, 10u}) {
    const Toy toy = toy_model(num_wrong);
    uint64_t num_accepted = 0, num_rounds = 0;
    for (const Start& start : starts()) {
      const Output plain = decode_plainly(toy, start);
      for (uint32_t block_size = 2; block_size <= kMaxBlockSize; ++block_size) {
        Rounds rounds(toy, start, kFixed, block_size);
        const Output output = rounds.run();
        CHECK(same(output, plain));
        check_stats(rounds.width.stats(), output.tokens.size());
        CHECK_EQ(rounds.state->position, start.position + output.tokens.size());
        CHECK_EQ(rounds.state->block[0], output.tokens.back().token_id);
        num_accepted += rounds.width.stats().num_accepted_tokens;
        num_rounds += rounds.width.stats().num_rounds;
      }
    }
    // The comparison is worth something only if drafts are both accepted and rejected.
    if (num_wrong < 10) CHECK(num_accepted > num_rounds / 2);
    CHECK(num_accepted < 14 * num_rounds);
  }
}

TEST_CASE("control: another seed, a lost token, a count not kept differ") {
  const Toy toy = toy_model(3);
  Start start = starts()[3];
  const Output plain = decode_plainly(toy, start);
  Rounds rounds(toy, start, kFixed, 8);
  rounds.params.seed += 1;
  CHECK(!same(rounds.run(), plain));
  Rounds again(toy, start, kFixed, 8);
  again.state->request.token_counts = nullptr;
  CHECK(!same(again.run(), plain));
  Rounds late(toy, start, kFixed, 8);
  late.state->position += 1;
  CHECK(!same(late.run(), plain));
}

TEST_CASE("a broken draft never changes the text") {
  Toy toy = toy_model(0);
  toy.draft = [](int32_t, uint32_t, uint32_t row) {
    return Logits(kVocab, row % 2 ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity());
  };
  for (const Start& start : starts()) CHECK(same(Rounds(toy, start, kFixed, 8).run(), decode_plainly(toy, start)));
  DraftOptions sampled = kFixed;
  sampled.proposal = DraftOptions::Proposal::sampled;
  Start greedy = starts()[0];
  CHECK(same(Rounds(toy, greedy, sampled, 8).run(), decode_plainly(toy, greedy)));
  Start warm = starts()[1];
  Rounds rounds(toy, warm, sampled, 8);
  CHECK_EQ(rounds.run().tokens.size(), warm.max_tokens - 1);
}

TEST_CASE("greedy ignores the proposal mode") {
  const Toy toy = toy_model(3);
  for (const size_t i : {0, 4}) {
    DraftOptions sampled = kFixed;
    sampled.proposal = DraftOptions::Proposal::sampled;
    const Start start = starts()[i];
    CHECK(same(Rounds(toy, start, sampled, 8).run(), decode_plainly(toy, start)));
  }
}

TEST_CASE("a stop inside a block ends it there; drafts behind it count nowhere") {
  const Toy toy = toy_model(0);  // greedy: every draft is right
  Start start = starts()[0];
  const Output text = decode_plainly(toy, start);
  for (size_t at = 0; at < 12; ++at) {
    const int32_t stop = text.tokens[at].token_id;
    const auto first = std::find_if(text.tokens.begin(), text.tokens.end(),
                                    [stop](const auto& token) { return token.token_id == stop; });
    const auto num_tokens = uint64_t(first - text.tokens.begin()) + 1;
    start.stop_ids = {stop};
    Rounds rounds(toy, start, kFixed, 8);
    const Output output = rounds.run();
    CHECK(output.end == RoundEnd::stop_id);
    CHECK_EQ(output.tokens.size(), num_tokens);
    CHECK_EQ(output.tokens.back().token_id, stop);
    CHECK_EQ(rounds.state->position, start.position + num_tokens);  // the stop token has no keys and values
    CHECK_EQ(rounds.state->input.num_tokens, 0u);
    const DraftStats& stats = rounds.width.stats();
    check_stats(stats, num_tokens);
    CHECK_EQ(stats.num_rounds, (num_tokens + 7) / 8);
    CHECK_EQ(stats.num_draft_tokens, num_tokens - stats.num_rounds);
  }
}

TEST_CASE("no row beyond max_tokens or max_context") {
  const Toy toy = toy_model(0);
  for (uint64_t limit = 2; limit < 40; ++limit) {
    for (const bool by_context : {false, true}) {
      Start start = starts()[0];
      start.max_tokens = by_context ? 1000 : limit;
      if (by_context) start.max_context = start.position + uint32_t(limit) - 1;
      Rounds rounds(toy, start, kFixed, 8);
      rounds.before_round = [&] {
        const RoundState& state = *rounds.state;
        CHECK(state.position + state.input.num_tokens <= start.max_context);
        CHECK(state.num_output + state.input.num_tokens <= start.max_tokens);
        for (uint32_t row = 0; row < state.input.num_tokens; ++row) {
          CHECK_EQ(state.input.positions[row], state.position + row);
          CHECK_EQ(state.input.logit_rows[row], row);
          CHECK_EQ(state.input.seq_idx[row], 0u);
        }
        CHECK_EQ(state.input.num_draft_rows, state.input.num_tokens > 1 ? 8u : 0u);
      };
      const Output output = rounds.run();
      CHECK(output.end == (by_context ? RoundEnd::context : RoundEnd::max_tokens));
      CHECK_EQ(output.tokens.size(), limit - 1);
      CHECK(same(output, decode_plainly(toy, start)));
      rounds.state->begin();  // nothing is left
      CHECK(rounds.state->end == output.end);
      CHECK_EQ(rounds.state->input.num_tokens, 0u);
    }
  }
}

TEST_CASE("a request and max_rounds end the rounds; begin goes on with the same text") {
  const Toy toy = toy_model(3);
  Start start = starts()[3];
  start.max_tokens = 900;
  const Output plain = decode_plainly(toy, start);
  Rounds rounds(toy, start, kFixed, 8);
  RoundState& state = *rounds.state;
  state.max_rounds = 3;
  uint64_t num_begins = 0;
  do {
    state.begin();
    ++num_begins;
    while (state.end == RoundEnd::running) {
      if (num_begins % 3 == 0) state.stop_requested = true;
      rounds.run_round();
    }
    if (num_begins % 3 == 0) CHECK(state.end == RoundEnd::requested || state.num_output == 900);
    CHECK(state.num_rounds <= 3);
    if (num_begins % 5 == 0) rounds.drain();  // at most 4 * 3 * 8 tokens wait
  } while (state.end == RoundEnd::requested || state.end == RoundEnd::max_rounds);
  rounds.drain();
  rounds.output.end = state.end;
  CHECK(same(rounds.output, plain));
}

TEST_CASE("a ring without room for a whole block ends the rounds") {
  const Toy toy = toy_model(0);
  Start start = starts()[0];  // greedy: every round emits its whole block
  start.max_tokens = 900;
  const Output plain = decode_plainly(toy, start);
  for (const uint32_t block_size : {5u, 7u, 8u}) {  // the first two do not divide the capacity
    Rounds full(toy, start, kFixed, block_size);
    full.state->begin();
    while (full.state->end == RoundEnd::running) full.run_round();
    CHECK(full.state->end == RoundEnd::requested);
    const uint64_t num_waiting = full.state->ring.num_pushed();
    CHECK_EQ(num_waiting, TokenRing::kCapacity / block_size * block_size);
    full.state->begin();  // still full
    CHECK(full.state->end == RoundEnd::requested);
    full.drain();
    CHECK_EQ(full.output.tokens.size(), num_waiting);
    for (size_t i = 0; i < num_waiting; ++i) CHECK(same(full.output.tokens[i], plain.tokens[i]));
  }
}

TEST_CASE("a row without finite logits ends the rounds after the tokens before it") {
  Toy toy = toy_model(0);
  for (const uint32_t bad : {33u, 34u}) {  // rows inside a block, and the first one of most
    toy.target = [bad](int32_t token, uint32_t position) {
      return position == bad ? Logits(kVocab, std::numeric_limits<float>::quiet_NaN()) : target_logits(token, position);
    };
    for (const uint32_t block_size : {2u, 3u, 8u, 16u}) {
      const Start start = starts()[0];
      Rounds rounds(toy, start, kFixed, block_size);
      const Output output = rounds.run();
      CHECK(output.end == RoundEnd::bad_logits);
      CHECK(same(output, decode_plainly(toy, start)));
      CHECK_EQ(rounds.state->position, bad);
      const DraftStats& stats = rounds.width.stats();
      CHECK_EQ(stats.num_draft_tokens, stats.num_accepted_tokens);  // those behind it count nowhere
    }
  }
}

TEST_CASE("context rows: all before a draft, none or many otherwise, never more than the plan's") {
  const Toy toy = toy_model(5);
  for (const DraftOptions::Mode mode : {DraftOptions::Mode::off, DraftOptions::Mode::fixed}) {
    for (const uint32_t max_rows : {4u, 20u, 64u, 512u}) {
      Start start = starts()[0];
      start.max_tokens = 400;
      start.position = 500;
      Rounds rounds(toy, start, {.mode = mode}, 8);
      RoundState& state = *rounds.state;
      state.request.max_context_rows = max_rows;
      state.num_context = 500 - std::min(max_rows, 300u);  // the prefill's last step
      uint32_t num_made = 0, num_drafted = 0;
      rounds.before_round = [&] {
        const StepInput& input = state.input;
        const uint32_t pending = state.position - state.num_context;
        const bool makes_all = input.num_context_rows == pending;
        CHECK_EQ(input.context_begin, state.num_context);
        CHECK(input.num_context_rows <= max_rows);
        CHECK(makes_all || input.num_draft_rows == 0);
        CHECK(pending <= std::max({max_rows, 8u, state.num_rounds ? 64u : 0u}));
        if (input.num_draft_rows == 0 && input.num_context_rows) CHECK(pending + 8 > std::min(64u, max_rows));
        num_made += input.num_context_rows;
        num_drafted += input.num_draft_rows > 0;
      };
      const Output output = rounds.run();
      CHECK(same(output, decode_plainly(toy, start)));
      CHECK_EQ(state.num_context, 500 - std::min(max_rows, 300u) + num_made);
      CHECK(mode == DraftOptions::Mode::off ? num_drafted == 0 : num_drafted > 20);
    }
  }
}

TEST_CASE("the ring hands tokens from one thread to another in order") {
  TokenRing ring;
  constexpr uint64_t kNumTokens = 200'000;
  std::thread writer([&] {
    for (uint64_t i = 0; i < kNumTokens;) {
      if (ring.free() == 0) {
        std::this_thread::yield();
        continue;
      }
      SampleResult token;
      token.token_id = int32_t(i);
      token.num_alternatives = 1;
      token.alternatives[0].token_id = int32_t(i) ^ 0x55;
      ring.push(token);
      ++i;
    }
  });
  uint64_t num_wrong = 0;
  for (uint64_t i = 0; i < kNumTokens;) {
    if (ring.num_pushed() == i) std::this_thread::yield();
    for (; i < ring.num_pushed(); ++i) {
      num_wrong += ring[i].token_id != int32_t(i) || ring[i].alternatives[0].token_id != (int32_t(i) ^ 0x55);
      if (i % 3 == 0) ring.release(i + 1);
    }
    ring.release(i);
  }
  writer.join();
  CHECK_EQ(num_wrong, 0u);
  CHECK_EQ(ring.free(), TokenRing::kCapacity);
}

CHECK_MAIN()
