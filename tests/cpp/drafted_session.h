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
