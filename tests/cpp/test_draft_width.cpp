// The adaptive width in simulation: no clocks, all times given by a model. References: plain decoding and the best
// fixed width of the same model.
#include "check.h"
#include "draft_simulation.h"
#include "engine/draft_width.h"

#include <cmath>
#include <functional>
#include <iterator>
#include <optional>
#include <utility>
#include <vector>

using namespace mimo_rt;
using namespace fixture;

namespace {

/// Rounds of a lookup, most of which find nothing: matches of some lengths are right as often as `chance` says.
Result simulate_lookup(DraftWidth& width, const std::function<double(uint32_t)>& ns, const std::function<double(float)>& chance,
                       uint64_t num_rounds, uint64_t seed = 1) {
  constexpr float kMatches[] = {1, 1, 1, 2, 3, 5, 16};
  Random random{seed};
  Result result;
  std::vector<float> scores;
  width.begin(num_rounds, width.budget());
  for (; result.num_rounds < num_rounds; ++result.num_rounds) {
    scores.clear();
    if (random.uniform() < 0.6) {
      const float match = kMatches[uint32_t(random.uniform() * std::size(kMatches))];
      for (uint32_t i = 0; i < 7; ++i) scores.push_back(match + float(i));
    }
    RoundOutcome round;
    round.num_drafts = width.choose_among(scores);
    CHECK(round.num_drafts <= scores.size());
    round.had_drafts = !scores.empty();
    round.scores = {scores.data(), round.num_drafts};
    while (round.num_accepted < round.num_drafts && random.uniform() < chance(scores[round.num_accepted])) ++round.num_accepted;
    const double spent = ns(round.num_drafts) * (0.95 + 0.1 * random.uniform());
    round.ns = uint64_t(spent);
    width.observe(round);
    result.ns += spent;
    result.widths.push_back(round.num_drafts);
    result.num_tokens += 1 + round.num_accepted;
  }
  return result;
}


/// ns per token of the best fixed width, plain decoding included, for one conditional acceptance at all positions.
double best_fixed(const World& world, uint32_t max_drafts) {
  double best = world.ns(0);
  double tokens = 1.0, all = 1.0;
  for (uint32_t n = 1; n <= max_drafts; ++n) {
    all *= world.acceptance(0, n - 1);
    tokens += all;
    best = std::min(best, world.ns(n) / tokens);
  }
  return best;
}

double adaptive_ns_per_token(const World& world, uint32_t block_size, uint64_t num_tokens, uint64_t seed = 1) {
  DraftWidth width(kAdaptive, block_size);
  return simulate(width, world, num_tokens, seed).ns_per_token();
}

/// What becomes of a width in 100 rounds like this one, and the plain ones that are due then.
DraftWidth after(DraftWidth width, const RoundOutcome& round) {
  for (int i = 0; i < 100; ++i) width.observe(round);
  for (int i = 0; i < 3; ++i) width.observe({.ns = uint64_t(kCosts[0](0))});
  return width;
}

}  // namespace

TEST_CASE("off and fixed") {
  DraftWidth off({.mode = DraftOptions::Mode::off}, 8), fixed(kFixed, 8);
  DraftWidth three({.mode = DraftOptions::Mode::fixed, .num_draft_tokens = 3}, 8);
  DraftWidth many({.mode = DraftOptions::Mode::fixed, .num_draft_tokens = 15}, 8);
  CHECK_EQ(off.choose(15), 0u);
  CHECK_EQ(fixed.choose(15), 7u);
  CHECK_EQ(fixed.choose(2), 2u);
  CHECK_EQ(three.choose(15), 3u);
  CHECK_EQ(many.choose(15), 7u);
  for (uint32_t block_size = 2; block_size <= kMaxBlockSize; ++block_size) {
    DraftWidth adaptive({.num_draft_tokens = 4}, block_size);
    const Result result = simulate(adaptive, {kCosts[0], always}, 300);
    for (const uint32_t n : result.widths) CHECK(n <= std::min(4u, block_size - 1));
  }
}

TEST_CASE("useless drafts: adaptive stays within 3 % of plain decoding, whatever drafting costs") {
  for (const auto& cost : kCosts)
    for (const uint32_t block_size : {2u, 8u, 16u})
      for (const double noise : {0.0, 0.1}) {
        const World world{cost, never, noise};
        const double ratio = adaptive_ns_per_token(world, block_size, 1000) / cost(0);
        CHECK(ratio < 1.03);
        if (ratio >= 1.03)
          std::fprintf(stderr, "cost(1) %g, block %u, noise %g: %g\n", cost(1), block_size, noise, ratio);
        DraftWidth fixed(kFixed, block_size);  // control: drafting all the time is not
        CHECK(simulate(fixed, world, 1000).ns_per_token() / cost(0) > 1.04);
      }
}

TEST_CASE("what context costs is part of what drafting may lose") {
  for (const auto& cost : kCosts)
    for (const double part : {0.005, 0.01, 0.015, 0.03, 0.05}) {  // of a plain round, per row
      const World world{.ns = cost, .acceptance = never, .noise = 0.1, .context_row = part * cost(0)};
      for (const uint32_t block_size : {2u, 8u}) {
        const double ratio = adaptive_ns_per_token(world, block_size, 2000) / cost(0);
        const double most = 1.0 + std::max(0.0275, part + 0.01);
        CHECK(ratio < most);
        if (ratio >= most) std::fprintf(stderr, "cost(1) %g, context %g: %g\n", cost(1), part, ratio);
      }
    }
  // Where it alone costs more, drafts are still tried: text that becomes predictable is noticed.
  const World dear{.ns = kCosts[1],
                   .acceptance = [](uint64_t num_tokens, uint32_t) { return num_tokens < 3000 ? 0.0 : 1.0; },
                   .context_row = 0.04 * kCosts[1](0)};
  DraftWidth width(kAdaptive, 8);
  const Result result = simulate(width, dear, 5000);
  size_t first = 0;
  while (result.tokens_before[first] < 3000) ++first;
  double useless_ns = 0;
  for (size_t i = 0; i < first; ++i) useless_ns += kCosts[1](result.widths[i]);
  CHECK(useless_ns / kCosts[1](0) < 3000 * 1.01);  // beside context
  size_t settled = first;
  while (settled < result.widths.size() && result.widths[settled] < 5) ++settled;
  CHECK(settled - first <= 60);
}

TEST_CASE("what was learnt serves other options: drafting is off for a while, then limited") {
  DraftWidth width(kAdaptive, 8);
  const World world{kCosts[1], always};
  simulate(width, world, 500);
  DraftWidth off({.mode = DraftOptions::Mode::off}, 8, width);
  CHECK_EQ(off.choose(15), 0u);
  CHECK_EQ(simulate(off, world, 100).num_rounds, 100u);
  DraftWidth three({.num_draft_tokens = 3}, 8, off);
  CHECK_EQ(three.choose(15), 3u);
  DraftWidth again(kAdaptive, 8, three);
  CHECK_EQ(again.choose(15), 7u);
  CHECK_EQ(again.stats().num_rounds, 0u + three.stats().num_rounds);
}

TEST_CASE("poor drafts: never more than 3 % behind plain decoding") {
  for (const auto& cost : kCosts)
    for (const double rate : {0.05, 0.15, 0.3})
      for (const uint32_t block_size : {4u, 16u}) {
        const World world{cost, [rate](uint64_t, uint32_t) { return rate; }, 0.1};
        CHECK(adaptive_ns_per_token(world, block_size, 3000) / cost(0) < 1.03);
      }
}

TEST_CASE("perfect drafts: within 2 % of the best fixed width") {
  for (const auto& cost : kCosts)
    for (const uint32_t block_size : {2u, 8u, 16u}) {
      const World world{cost, always};
      const double ratio = adaptive_ns_per_token(world, block_size, 8000) / best_fixed(world, block_size - 1);
      CHECK(ratio < 1.02);
      if (ratio >= 1.02) std::fprintf(stderr, "cost(1) %g, block %u: %g\n", cost(1), block_size, ratio);
    }
  // Control: half a block is not within 2 %.
  DraftWidth half({.mode = DraftOptions::Mode::fixed, .num_draft_tokens = 3}, 8);
  const World world{kCosts[0], always};
  CHECK(simulate(half, world, 4000).ns_per_token() / best_fixed(world, 7) > 1.02);
}

TEST_CASE("steady acceptance: close to the best fixed width, noise and interrupted rounds or not") {
  for (const auto& cost : kCosts)
    for (const double rate : {0.5, 0.7, 0.85, 0.95})
      for (const double noise : {0.0, 0.15}) {
        const World world{cost, [rate](uint64_t, uint32_t) { return rate; }, noise};
        const double ratio = adaptive_ns_per_token(world, 8, 20'000) / best_fixed(world, 7);
        // A rejected draft that costs three rounds exhausts the budget soon, even where drafting pays on average.
        const double bound = cost(1) > 2 * cost(0) ? 1.2 : 1.05;
        CHECK(ratio < bound);
        if (ratio >= bound) std::fprintf(stderr, "cost(1) %g, rate %g, noise %g: %g\n", cost(1), rate, noise, ratio);
      }
}

TEST_CASE("interrupted rounds change little") {
  for (const auto& cost : {kCosts[0], kCosts[1], kCosts[2]})
    for (const double rate : {0.0, 0.8}) {
      const World calm{cost, [rate](uint64_t, uint32_t) { return rate; }};
      World rough = calm;
      rough.outlier_rate = 0.02;
      DraftWidth width(kAdaptive, 8), reference(kAdaptive, 8);
      const Result result = simulate(width, rough, 10'000);
      // Without its outliers: what the chosen widths cost.
      double ns = 0;
      for (const uint32_t n : result.widths) ns += cost(n);
      const double ratio = ns / double(result.num_tokens) / simulate(reference, calm, 10'000).ns_per_token();
      CHECK(ratio < 1.03);
      if (ratio >= 1.03) std::fprintf(stderr, "cost(1) %g, rate %g: %g\n", cost(1), rate, ratio);
    }
}

TEST_CASE("what rounds bring alone is known after the first few, and shared ones are not among them") {
  const World world{kCosts[0], [](uint64_t, uint32_t) { return 0.8; }, 0.1};
  DraftWidth width(kAdaptive, 8), fixed(kFixed, 8);
  CHECK_EQ(width.tokens_per_ns(), 0.0);
  simulate(width, world, 4);
  CHECK_EQ(width.tokens_per_ns(), 0.0);
  const Result result = simulate(width, world, 20'000);
  const double rate = width.tokens_per_ns();
  CHECK(std::abs(rate * result.ns_per_token() - 1.0) < 0.25);  // of the last rounds alone
  for (uint32_t i = 0; i < 50; ++i) width.observe({.ns = 1'000'000'000, .had_drafts = false, .spent = 1.0});
  CHECK_EQ(width.tokens_per_ns(), rate);
  simulate(fixed, world, 1000);
  CHECK_EQ(fixed.tokens_per_ns(), 0.0);  // measures no times
}

TEST_CASE("text that becomes predictable is noticed within a few dozen rounds, and the reverse costs little") {
  for (const auto& cost : {kCosts[0], kCosts[1], kCosts[2], kCosts[4]})
    for (const uint64_t seed : {1, 2, 3}) {
      constexpr uint64_t kSwitch = 1500;
      const World world{cost, [](uint64_t num_tokens, uint32_t) { return num_tokens < kSwitch ? 0.0 : 1.0; }, 0.05};
      DraftWidth width(kAdaptive, 8);
      const Result result = simulate(width, world, 4000, seed);
      size_t first = 0, settled = 0;
      while (result.tokens_before[first] < kSwitch) ++first;
      for (settled = first; settled < result.widths.size() && result.widths[settled] < 5; ++settled) {
      }
      CHECK(settled - first <= 60);

      const World reverse{cost, [](uint64_t num_tokens, uint32_t) { return num_tokens < kSwitch ? 1.0 : 0.0; }, 0.05};
      DraftWidth other(kAdaptive, 8);
      const Result back = simulate(other, reverse, kSwitch + 1000, seed);
      double ns_after = 0;
      uint64_t begin = 0;
      for (size_t i = 0; i < back.widths.size(); ++i) {
        if (back.tokens_before[i] < kSwitch) continue;
        if (!begin) begin = back.tokens_before[i];
        ns_after += cost(back.widths[i]);
      }
      // 2 % and the credit of ten rounds and one more.
      CHECK(ns_after / cost(0) < 1.02 * double(back.num_tokens - begin) + 12);
    }
}

TEST_CASE("no schedule of a hostile draft costs more than the budget") {
  for (const auto& cost : kCosts)
    for (const uint32_t period : {3u, 10u, 40u, 200u}) {
      const World world{cost, [period](uint64_t num_tokens, uint32_t) { return num_tokens / period % 2 ? 0.9 : 0.0; }};
      DraftWidth width(kAdaptive, 16);
      const Result result = simulate(width, world, 5000);
      CHECK(result.ns / cost(0) < 1.02 * 5000 + 12);
    }
}

TEST_CASE("a machine that becomes slower or faster for a while") {
  uint64_t num_rounds = 0;
  const auto cost = [&](uint32_t n) {  // other work on the machine, in stretches of 150 rounds
    return kCosts[1](n) * (++num_rounds / 150 % 2 ? 2.5 : 1.0);
  };
  const World world{cost, [](uint64_t, uint32_t) { return 0.8; }};
  DraftWidth width(kAdaptive, 8);
  const Result result = simulate(width, world, 10'000);
  double ns = 0;
  for (const uint32_t n : result.widths) ns += kCosts[1](n);
  CHECK(ns / double(result.num_tokens) / best_fixed({kCosts[1], world.acceptance}, 7) < 1.08);
}

TEST_CASE("plain rounds that become faster are noticed while drafting") {
  uint64_t num_rounds = 0;
  const auto cost = [&](uint32_t n) { return 1e7 * (n ? 2.0 : ++num_rounds < 1000 ? 1.0 : 0.3); };
  const World world{cost, [](uint64_t, uint32_t) { return 0.75; }};  // 3.5 tokens in 2: 1.7 > 1, but < 3.3
  DraftWidth width(kAdaptive, 8);
  num_rounds = 0;
  const Result before = simulate(width, world, 1000);
  CHECK(before.ns_per_token() < 0.65e7);
  num_rounds = 1000;
  const Result after = simulate(width, world, 10'000);
  CHECK(after.ns_per_token() < 0.35e7);
}

TEST_CASE("a first draft that is interrupted does not end drafting") {
  uint64_t num_drafted = 0;
  const auto cost = [&](uint32_t n) { return kCosts[1](n) * (n && ++num_drafted == 1 ? 60.0 : 1.0); };
  DraftWidth width(kAdaptive, 8);
  const Result result = simulate(width, {cost, always}, 3000);
  double ns = 0;
  for (const uint32_t n : result.widths) ns += kCosts[1](n);
  CHECK(ns / 3000 / best_fixed({kCosts[1], always}, 7) < 1.25);
}

TEST_CASE("scores that tell easy drafts from hard ones beat the best fixed width") {
  // Half of the drafts are accepted at 0.95, half at 0.2: 0.575 for who cannot tell.
  const auto blind = [](uint64_t, uint32_t) { return 0.575; };
  const auto told = [](Random& random) {
    return random.uniform() < 0.5 ? std::pair{5.0f, 0.95} : std::pair{0.3f, 0.2};
  };
  const auto silent = [](Random& random) { return std::pair{2.5f, random.uniform() < 0.5 ? 0.95 : 0.2}; };
  for (const auto& cost : {kCosts[1], kCosts[2]})
    for (const uint64_t seed : {1, 2}) {
      const double best = best_fixed({cost, blind}, 7);
      const World tells{.ns = cost, .acceptance = nullptr, .noise = 0.1, .told = told};
      const World says_nothing{.ns = cost, .acceptance = nullptr, .noise = 0.1, .told = silent};
      const double with = adaptive_ns_per_token(tells, 8, 20'000, seed) / best;
      const double without = adaptive_ns_per_token(says_nothing, 8, 20'000, seed) / best;
      CHECK(with < 0.95);
      CHECK(without > 0.98 && without < 1.05);  // control: the gain is that of the scores
      if (with >= 0.95 || without >= 1.05) std::fprintf(stderr, "cost(1) %g: %g, %g\n", cost(1), with, without);
    }
}

TEST_CASE("scores that lie cost no more than useless drafts") {
  const auto sure_and_wrong = [](Random&) { return std::pair{8.0f, 0.0}; };
  const auto turned = [](Random& random) { return random.uniform() < 0.5 ? std::pair{8.0f, 0.0} : std::pair{0.1f, 1.0}; };
  for (const auto& cost : kCosts)
    for (const uint32_t block_size : {2u, 8u, 16u}) {
      const World wrong{.ns = cost, .acceptance = nullptr, .told = sure_and_wrong};
      CHECK(adaptive_ns_per_token(wrong, block_size, 1000) / cost(0) < 1.03);
      const World reversed{.ns = cost, .acceptance = nullptr, .told = turned};
      CHECK(adaptive_ns_per_token(reversed, block_size, 3000) / cost(0) < 1.03);
    }
}

TEST_CASE("lookups: worth more than any fixed width, and nothing lost where they are useless") {
  const auto chance = [](float match) { return match < 2 ? 0.2 : match < 5 ? 0.6 : match < 16 ? 0.85 : 0.98; };
  const auto no_chance = [](float) { return 0.0; };
  const auto turned = [](float match) { return match < 2 ? 0.9 : 0.1; };
  struct Case {
    std::function<double(uint32_t)> row_costs;
    double of_best, of_plain;  ///< limits: time per token as a part of the best fixed width's, and where matches are turned
  };
  for (const auto& [row_costs, of_best, of_plain] :
       {Case{affine(0.02, 0.14), 0.92, 0.95}, Case{affine(0.05, 0.05), 0.99, 0.95}, Case{affine(0.1, 0.3), 0.85, 1.0},
        Case{affine(0.5, 0.5), 1.03, 1.03}})
    for (const uint64_t seed : {1, 2}) {
      const double plain = row_costs(0);
      double best = plain;
      for (uint32_t n = 1; n <= 7; ++n) {
        DraftWidth fixed({.mode = DraftOptions::Mode::fixed, .num_draft_tokens = n}, 8, DraftSource::ngram_lookup);
        best = std::min(best, simulate_lookup(fixed, row_costs, chance, 10'000, seed).ns_per_token());
      }
      DraftWidth width(kAdaptive, 8, DraftSource::ngram_lookup);
      const double value = simulate_lookup(width, row_costs, chance, 10'000, seed).ns_per_token();
      CHECK(value < of_best * best);
      // What was learnt is unlearnt: now short matches are the good ones, later none is.
      const double gain = simulate_lookup(width, row_costs, turned, 10'000, seed).ns_per_token() / plain;
      CHECK(gain < of_plain);
      CHECK(simulate_lookup(width, row_costs, no_chance, 3000, seed).ns_per_token() / plain < 1.03);
      DraftWidth useless(kAdaptive, 8, DraftSource::ngram_lookup);
      CHECK(simulate_lookup(useless, row_costs, no_chance, 1000, seed).ns_per_token() / plain < 1.03);
      DraftWidth always(kFixed, 8, DraftSource::ngram_lookup);  // control
      CHECK(simulate_lookup(always, row_costs, no_chance, 1000, seed).ns_per_token() / plain > 1.1);
    }
}

TEST_CASE("lookups whose score has been wrong are left alone, whatever others gain") {
  const auto costs = affine(0.02, 0.3);
  const auto chance = [](float match) { return match < 2 ? 0.0 : 0.9; };
  DraftWidth width(kAdaptive, 8, DraftSource::ngram_lookup);
  simulate_lookup(width, costs, chance, 2000);
  const float wrong[] = {1};
  uint32_t num_drafted = 0;
  for (uint32_t i = 0; i < 2000; ++i) {
    RoundOutcome round{.num_drafts = width.choose_among(wrong), .ns = 0};
    num_drafted += round.num_drafts;
    round.ns = uint64_t(costs(round.num_drafts));
    round.scores = {wrong, round.num_drafts};
    width.observe(round);
    width.observe({.num_drafts = 7, .num_accepted = 7, .ns = uint64_t(costs(7)), .had_drafts = true});  // a gain
  }
  CHECK(num_drafted < 20);
}

TEST_CASE("what a stop cuts off says nothing about drafts, nor does a round that makes much context about times") {
  const auto ns = uint64_t(kCosts[1](7));
  DraftWidth sure(kAdaptive, 8);
  simulate(sure, {kCosts[1], always}, 1000);
  CHECK_EQ(after(sure, {.num_drafts = 7, .num_accepted = 2, .ns = ns, .is_cut = true}).choose(15), 7u);
  CHECK_EQ(after(sure, {.num_drafts = 7, .num_accepted = 2, .ns = ns}).choose(15), 2u);  // control
  const RoundOutcome slow{.num_drafts = 7, .num_accepted = 7, .num_context_rows = 200, .ns = 10 * ns};
  CHECK_EQ(after(sure, slow).choose(15), 7u);
  CHECK(after(sure, {.num_drafts = 7, .num_accepted = 7, .num_context_rows = 16, .ns = 10 * ns}).choose(15) < 7);

  // A cut behind the anchor does not even age what is known: that the second draft is always wrong.
  const auto cheap = affine(0.0, 0.1);
  DraftWidth first = after(after(DraftWidth(kAdaptive, 8), {.ns = uint64_t(cheap(0))}),
                           {.num_drafts = 7, .num_accepted = 1, .ns = uint64_t(cheap(7))});
  CHECK_EQ(after(first, {.num_drafts = 1, .ns = uint64_t(cheap(1)), .is_cut = true}).choose(15), 1u);
  CHECK(after(first, {.num_drafts = 1, .num_accepted = 1, .ns = uint64_t(cheap(1))}).choose(15) > 1);  // control

  const World told{.ns = kCosts[1], .acceptance = nullptr, .told = [](Random&) { return std::pair{5.0f, 1.0}; }};
  const std::vector<float> scores(7, 5.0f);
  DraftWidth scored(kAdaptive, 8);
  simulate(scored, told, 1000);
  RoundOutcome round{.num_drafts = 7, .num_accepted = 2, .ns = ns, .is_cut = true, .scores = scores};
  CHECK_EQ(after(scored, round).narrow(scores), 7u);
  round.is_cut = false;
  CHECK(after(scored, round).narrow(scores) < 7);  // control
}

TEST_CASE("statistics of the next generation begin at zero, what was learnt stays") {
  DraftWidth width(kAdaptive, 8);
  const World world{kCosts[1], always};
  simulate(width, world, 500);
  CHECK(width.stats().num_rounds > 0);
  CHECK(width.stats().acceptance_length() > 6);
  width.begin(500, width.budget());
  CHECK_EQ(width.stats().num_rounds, 0u);
  CHECK_EQ(width.choose(15), 7u);
  DraftWidth fresh(kAdaptive, 8);
  CHECK_EQ(fresh.choose(15), 0u);  // control: the first rounds measure plain decoding
}

TEST_CASE("statistics: a cut round counts what it emitted") {
  DraftWidth width(kFixed, 8);
  width.observe({.num_drafts = 7, .num_accepted = 7, .num_context_rows = 8, .ns = 1});
  width.observe({.num_drafts = 7, .num_accepted = 2, .num_context_rows = 8, .ns = 1});
  width.observe({.num_drafts = 7, .num_accepted = 3, .num_context_rows = 8, .ns = 1, .is_cut = true});
  width.observe({.num_drafts = 0, .num_accepted = 0, .num_context_rows = 0, .ns = 1});
  const DraftStats& stats = width.stats();
  CHECK_EQ(stats.num_rounds, 4u);
  CHECK_EQ(stats.num_drafted_rounds, 3u);
  CHECK_EQ(stats.num_draft_tokens, 17u);
  CHECK_EQ(stats.num_accepted_tokens, 12u);
  CHECK_EQ(stats.width_histogram[7], 3u);
  CHECK_EQ(stats.width_histogram[0], 1u);
  CHECK_EQ(stats.accepted_histogram[2], 1u);
  CHECK_EQ(stats.accepted_histogram[3], 1u);
  CHECK_EQ(stats.drafted_at_pos[2], 3u);
  CHECK_EQ(stats.drafted_at_pos[3], 2u);
  CHECK_EQ(stats.accepted_at_pos[2], 2u);
  CHECK_EQ(stats.acceptance_length(), 4.0);
}

CHECK_MAIN()
