// Shared steps or rounds with drafts: whatever brings more tokens, found out first, and again after a while.
#include "drafted_session.h"
#include "engine/round_sharing.h"

#include <algorithm>

using namespace fake_engine;

TEST_CASE("rounds alone are measured first, then a shared step, then what brings more tokens") {
  RoundSharing sharing;
  CHECK(!sharing.shares(2, 0.0, 0.0));
  CHECK(!sharing.shares(2, 0.0, 5.0));
  CHECK(sharing.shares(2, 1.0, 0.0));
  // Alone 3 tokens in 2 ns; shared one of each session in 1.6 ns.
  CHECK(!sharing.shares(2, 1.5, 1.6));
  CHECK(sharing.shares(3, 1.5, 1.6));
  CHECK(!sharing.shares(3, 1.5, 2.1));
}

TEST_CASE("whatever brings more, the other is looked at now and then: times of long ago may have been those of another load") {
  RoundSharing sharing;
  for (const bool pays : {true, false}) {
    uint32_t num_others = 0, num_in_a_row = 0, longest = 0;
    for (uint32_t round = 0; round < 10 * (pays ? 260u : 257u); ++round) {
      const bool shares = sharing.shares(8, pays ? 1.0 : 5.0, 2.0);
      num_others += shares != pays;
      num_in_a_row = shares == pays ? num_in_a_row + 1 : 0;
      longest = std::max(longest, num_in_a_row);
    }
    CHECK_EQ(num_others, pays ? 40u : 10u);
    CHECK_EQ(longest, 256u);
  }
  CHECK(sharing.shares(8, 1.0, 2.0));
}

TEST_CASE("rounds that are never shared do not make others share theirs, but count for prompts beside them") {
  for (const auto mode : {DraftOptions::Mode::off, DraftOptions::Mode::fixed, DraftOptions::Mode::adaptive}) {
    const Fixture f(16, 4, Drafts::model);
    GenerateOptions options = greedy(12);
    options.draft.mode = mode;
    const Engine::Impl& impl = f.engine->impl();
    uint32_t most_sharing = 0, most_decoding = 0;
    f.executor->on_step = [&] {
      most_sharing = std::max(most_sharing, impl.num_sharing.load());
      most_decoding = std::max(most_decoding, impl.num_decoding.load());
    };
    const Tokens tokens = Session(f.engine).generate(iota_tokens(9), options, [&](const TokenEvent&) {
      CHECK_EQ(impl.num_sharing.load() + impl.num_decoding.load(), 0u);
      return true;
    }).token_ids;
    CHECK(tokens == reference(iota_tokens(9), options));
    CHECK_EQ(most_sharing, mode == DraftOptions::Mode::fixed ? 0u : 1u);
    CHECK_EQ(most_decoding, 1u);
  }
}

CHECK_MAIN()
