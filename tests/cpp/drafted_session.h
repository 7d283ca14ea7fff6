// What holds of generations with drafts wherever these come from: of a model or of the text. `make` returns an engine that
// drafts, `options_of` what to generate so that some drafts are right and some are not.
#pragma once

#include "fake_engine.h"

namespace fake_engine {

inline GenerateOptions fixed(GenerateOptions options, uint32_t num_draft_tokens = 0) {
  options.draft.mode = DraftOptions::Mode::fixed;
  options.draft.num_draft_tokens = num_draft_tokens;
  return options;
}

inline DraftStats stats_of(const GenerateResult& result) { return result.stats.draft; }

/// Of a generation whose tokens, but the first, all came from rounds that it wanted to be told of: the statistics are those
/// of the output, also where a round ran past its end.
inline void check_sums(const GenerateResult& result) {
  const DraftStats stats = stats_of(result);
  CHECK_EQ(stats.num_rounds + stats.num_accepted_tokens, result.token_ids.size() - 1);
  CHECK_EQ(stats.num_rounds, result.rounds.size());
  uint64_t num_tokens = 1, num_drafts = 0, at_pos = 0, histogram = 0;
  for (const RoundStats& round : result.rounds) {
    num_tokens += round.num_tokens;
    num_drafts += round.num_drafts;
    CHECK(round.num_tokens >= 1 && round.num_tokens <= round.num_drafts + 1 && round.num_drafts < round.num_rows);
  }
  CHECK_EQ(num_tokens, result.token_ids.size());
  CHECK_EQ(num_drafts, stats.num_draft_tokens);
  for (uint32_t n = 0; n < DraftStats::kMaxDrafts; ++n) {
    at_pos += stats.accepted_at_pos[n];
    histogram += (n + 1) * stats.accepted_histogram[n + 1];
  }
  CHECK_EQ(at_pos, stats.num_accepted_tokens);
  CHECK_EQ(histogram, stats.num_accepted_tokens);
}

using MakeFixture = std::function<Fixture()>;
using OptionsOf = std::function<GenerateOptions(uint32_t max_tokens)>;

inline void check_adaptive_and_off(const MakeFixture& make, const OptionsOf& options_of) {
  const Tokens prompt = iota_tokens(5), expected = reference(prompt, options_of(100));
  Fixture f = make();
  Session session(f.engine);
  GenerateOptions options = options_of(100);
  CHECK(session.generate(prompt, options).token_ids == expected);
  options.draft.mode = DraftOptions::Mode::off;
  const GenerateResult off = session.generate(prompt, options);
  CHECK(off.token_ids == expected);
  CHECK_EQ(stats_of(off).num_drafted_rounds, 0u);
  CHECK_EQ(stats_of(off).num_rounds, 99u);
}

inline void check_limits(const MakeFixture& make, const OptionsOf& options_of) {
  const Tokens prompt = iota_tokens(10), longest = reference(prompt, options_of(60));
  for (uint32_t max_tokens = 1; max_tokens <= 40; ++max_tokens) {
    Fixture f = make();
    Session session(f.engine);
    const GenerateResult result = session.generate(prompt, fixed(options_of(max_tokens)));
    CHECK(result.token_ids == Tokens(longest.begin(), longest.begin() + max_tokens));
    CHECK(result.finish_reason == FinishReason::length);
    CHECK_EQ(session.num_cached_tokens(), 10 + max_tokens - 1);
  }
  for (uint32_t max_context = 11; max_context <= 40; ++max_context) {
    Fixture f = make();
    Session session(f.engine, {.max_context = max_context});
    const GenerateResult result = session.generate(prompt, fixed(options_of(0)));
    CHECK(result.token_ids == Tokens(longest.begin(), longest.begin() + (max_context - 10)));
    CHECK_EQ(session.num_cached_tokens(), max_context - 1);
  }
}

}  // namespace fake_engine
