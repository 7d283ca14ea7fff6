// The accept task of rounds with drafts, its own source under the emulated GPU, against the host's: the same tokens, the
// same rows for the next round, the same end; and a host that replays the reports stands where one that accepts does.
#define MIMO_RT_HOST_EMULATION
#include "accept_fixture.h"

#include <bit>

using namespace mimo_rt;
using namespace fixture;

namespace {

struct Outcome {
  RoundEnd end;
  uint64_t num_tokens, num_accepted;
};

/// Rounds until the text ends, `max_rounds` at most.
Outcome run(const Generation& g, uint32_t max_rounds = 6) {
  Rounds rounds(g);
  uint64_t num_tokens = 0;
  for (uint32_t i = 0; i < max_rounds && rounds.host.state->end == RoundEnd::running; ++i) {
    rounds.fill();
    num_tokens += rounds.run().size();
  }
  return {rounds.host.state->end, num_tokens, rounds.host.width.stats().num_accepted_tokens};
}

std::vector<SamplingParams> settings() {
  return {{.temperature = 0.0f},
          {.seed = 3},
          {.temperature = 0.7f, .sample_top_k = 20, .repetition_penalty = 1.4f, .seed = 4},
          {.temperature = 0.0f, .repetition_penalty = 0.7f, .logit_bias = {{1, 4.0f}, {4, -90.0f}}},
          {.temperature = 1.3f, .sample_top_p = 0.8f, .min_p = 0.02f, .seed = 5}};
}

/// Few tokens, so that texts repeat; no draft model.
Generation looking_up(uint32_t seed) {
  Generation g{.params = settings()[seed % 5], .block_size = (const uint32_t[]){8, 5, 2}[seed % 3], .seed = seed, .looks_up = true};
  g.params.logit_bias = {{5, 40.0f}, {9, 40.0f}, {11, 40.0f}};
  return g;
}

}  // namespace

TEST_CASE("rounds are those of the host: tokens, statistics and the next rows, for both kinds of proposals") {
  uint64_t num_tokens = 0, num_accepted = 0;
  uint32_t seed = 0;
  for (const auto proposal : {DraftOptions::Proposal::argmax, DraftOptions::Proposal::sampled})
    for (const SamplingParams& params : settings())
      for (const uint32_t block_size : {2u, 5u, 8u}) {
        Generation g{.params = params, .block_size = block_size, .has_part = seed % 3 == 0, .seed = ++seed};
        g.draft.proposal = proposal;
        const Outcome outcome = run(g);
        CHECK(outcome.end == RoundEnd::running);
        num_tokens += outcome.num_tokens;
        num_accepted += outcome.num_accepted;
      }
  CHECK(num_accepted > num_tokens / 4 && num_accepted < num_tokens);
}

TEST_CASE("stops, limits and what the draft may not see end or narrow rounds as on the host") {
  std::vector<int32_t> stop_ids;
  for (int32_t id = 0; id < static_cast<int32_t>(kVocab); id += 9) stop_ids.push_back(id);
  uint32_t num_ends[8] = {};
  for (uint32_t seed = 1; seed <= 8; ++seed) {
    const Generation base{.params = settings()[seed % 5], .noise = 0.3f, .seed = seed};
    const auto ends = [&](auto change) {
      Generation g = base;
      change(g);
      const RoundEnd end = run(g).end;
      ++num_ends[static_cast<uint32_t>(end)];
      return end;
    };
    ends([&](Generation& g) { g.stop_ids = stop_ids; });
    ends([&](Generation& g) { g.stop_ids = stop_ids, g.min_tokens = 5; });
    CHECK(ends([&](Generation& g) { g.max_tokens = 2 + seed % 6; }) == RoundEnd::max_tokens);
    CHECK(ends([&](Generation& g) { g.max_context = 31 + seed % 6; }) == RoundEnd::context);
    ends([&](Generation& g) { g.draft.num_draft_tokens = 1 + seed % 7; });
    ends([&](Generation& g) { g.num_context = 10; });  // more rows are pending than the draft can take at once
    ends([&](Generation& g) { g.num_context = 27, g.draft.mode = DraftOptions::Mode::off, g.max_context_rows = 8; });
  }
  CHECK(num_ends[static_cast<uint32_t>(RoundEnd::stop_id)] >= 8);
  CHECK(num_ends[static_cast<uint32_t>(RoundEnd::running)] >= 16);
}

TEST_CASE("drafts from the text: the host's, and all else as on the host, whatever ends the rounds") {
  uint64_t num_tokens = 0, num_accepted = 0;
  uint32_t num_ends[8] = {};
  for (uint32_t seed = 1; seed <= 15; ++seed) {
    const auto add = [&](auto change) {
      Generation g = looking_up(seed);
      change(g);
      const Outcome outcome = run(g, 12);
      ++num_ends[static_cast<uint32_t>(outcome.end)];
      num_tokens += outcome.num_tokens;
      num_accepted += outcome.num_accepted;
    };
    add([](Generation&) {});
    if (seed % 3 == 0) add([&](Generation& g) { g.max_tokens = 2 + seed % 10; });
    if (seed % 3 == 0) add([&](Generation& g) { g.max_context = kPosition + 1 + seed % 10; });
    if (seed % 3 == 1) add([&](Generation& g) { g.stop_ids = {9}, g.min_tokens = seed % 4; });
    if (seed % 3 == 1) add([&](Generation& g) { g.draft.num_draft_tokens = 1 + seed % 4; });
    if (seed % 5 == 0) add([&](Generation& g) { g.draft.mode = DraftOptions::Mode::off; });
    if (seed % 5 == 0) add([&](Generation& g) { g.draft.proposal = DraftOptions::Proposal::sampled; });
  }
  CHECK(num_accepted > num_tokens / 4 && num_accepted < num_tokens);
  for (const auto end : {RoundEnd::running, RoundEnd::max_tokens, RoundEnd::context, RoundEnd::stop_id})
    CHECK(num_ends[static_cast<uint32_t>(end)] >= 3);
}

TEST_CASE("a device whose text is one token late is found") {
  uint32_t num_found = 0;
  for (uint32_t seed = 1; seed <= 6; ++seed) {
    std::vector<int32_t> late = first_text(seed);
    std::rotate(late.begin(), late.end() - 1, late.end());
    Rounds rounds(looking_up(seed), late);
    rounds.is_compared = false;
    try {
      for (uint32_t i = 0; i < 12; ++i) {
        rounds.fill();
        rounds.run();
        num_found += std::memcmp(&rounds.host.width.stats(), &rounds.mirror.width.stats(), sizeof(DraftStats)) != 0;
      }
    } catch (const Error& error) {
      CHECK(std::string_view(error.what()).find("which the text has") != std::string_view::npos ||
            std::string_view(error.what()).find("drafts that the text has") != std::string_view::npos);
      ++num_found;
    }
  }
  CHECK(num_found >= 6);
}

TEST_CASE("of a text, a round verifies as many drafts as its order says for the length of the match") {
  uint32_t seen = 0;
  for (const uint32_t seed : {3u, 6u, 9u}) {
    Rounds rounds(looking_up(seed));
    rounds.is_compared = false;  // the host has other widths
    cuda::RoundOrder order = cuda::RoundOrder::until(rounds.mail.next_number() + 20);
    for (uint32_t match = 1; match <= kMaxLookupMatch; ++match) order.set_max_drafts(match, (match + 1) % 6);
    rounds.mail.mailbox()->order = order;
    for (uint32_t i = 0; i < 12; ++i) {
      rounds.fill();
      rounds.run();
      std::vector<int32_t> drafts(7);
      const uint32_t match = rounds.mirror.lookup.propose(drafts);
      CHECK_EQ(rounds.num_drafts(), match ? (match + 1) % 6 : 0);
      seen |= 1u << match;
    }
  }
  CHECK(std::popcount(seen) >= 4);
}

// The emulation's clock begins anew with every launch, here with every round.
TEST_CASE("a round's time begins when the one before has ended, or when the host has allowed it") {
  constexpr uint64_t kBegin = 1, kIdleNs = 40'000;
  Rounds rounds(looking_up(3));
  rounds.is_compared = false;
  rounds.table().last_ns = kBegin;
  rounds.fill();
  rounds.run();
  CHECK(rounds.ns > 0);
  CHECK_EQ(rounds.table().last_ns, kBegin + rounds.ns);  // before it looked up the next drafts
  rounds.mail.grant(1);
  rounds.mail.tell(*rounds.host.state);
  rounds.mail.mailbox()->idle_ns = kIdleNs;  // nobody allows another one
  rounds.is_told_to_stop = true;
  rounds.table().last_ns = kBegin;
  rounds.fill();
  rounds.run();
  CHECK(rounds.table().last_ns >= kBegin + rounds.ns + kIdleNs);
}

TEST_CASE("a row without a finite logit ends the rounds after the tokens before it") {
  for (const uint32_t row : {0u, 2u}) {
    Rounds rounds({.params = {.temperature = 0.0f}, .noise = 0.0f});
    rounds.fill();
    rounds.break_row(row);
    CHECK_EQ(rounds.run().size(), row);
    CHECK(rounds.host.state->end == RoundEnd::bad_logits);
  }
}

TEST_CASE("the host's word is the last: no round begins after it has asked to stop") {
  Rounds rounds({.params = {.seed = 2}});
  rounds.fill();
  rounds.run();
  rounds.request_stop();
  rounds.fill();
  CHECK(!rounds.run().empty());
  CHECK(rounds.mirror.state->end == RoundEnd::requested);
}

TEST_CASE("rounds that ran before the device heard that it should stop count like others, lookups, too") {
  Rounds rounds(looking_up(2));
  rounds.is_compared = false;
  rounds.mirror.state->stop_requested = true;
  for (uint32_t i = 0; i < 8; ++i) {
    rounds.fill();
    rounds.run();
    CHECK(rounds.mirror.state->end == RoundEnd::requested);
    CHECK(!std::memcmp(&rounds.host.width.stats(), &rounds.mirror.width.stats(), sizeof(DraftStats)));
  }
  CHECK(rounds.mirror.width.stats().num_accepted_tokens > 0);
}

TEST_CASE("a device that ends a text that the host goes on with, or the other way round, is found") {
  const Generation g{.params = {.seed = 2}, .stop_ids = {1}};
  HostState state(g);
  cuda::RoundRecord record{};
  record.num_tokens = record.num_emitted = 1;
  record.tokens[0] = 2;
  record.has_ended = 1;
  CHECK_THROWS(internal, "the GPU says that the text ends", apply_record(*state.state, record, nullptr, 0));
  HostState other(g);
  record.tokens[0] = 1;
  record.has_ended = 0;
  CHECK_THROWS(internal, "the GPU says that the text goes on", apply_record(*other.state, record, nullptr, 0));
}

TEST_CASE("a device that runs a round which it was not granted is found") {
  cuda::RoundMail mail(std::make_shared<EmulatedStepDevice>(), 0);
  mail.grant(2);
  for (uint32_t number = 1; number <= 3; ++number) mail.mailbox()->records[number].number = number;
  CHECK(mail.read() && mail.read());
  CHECK_THROWS(internal, "expected no round after number 2, got one", mail.read());
}

TEST_CASE("a device that verifies other drafts than it should gives other tokens") {
  Rounds rounds({.params = {.temperature = 0.0f}, .noise = 0.0f});
  rounds.wrong_draft = 1;
  rounds.is_compared = false;
  rounds.fill();
  const std::vector<int32_t> tokens = rounds.run();
  CHECK_EQ(tokens.size(), 8u);
  CHECK_EQ(rounds.device_tokens.size(), 1u);
  CHECK_EQ(rounds.device_tokens[0], tokens[0]);
}

CHECK_MAIN()
