// Drafting in simulation: no clocks, all times given by a model.
#pragma once

#include "check.h"
#include "engine/draft_width.h"
#include "sampling/round_rows.h"

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

namespace mimo_rt::fixture {

inline constexpr DraftOptions kAdaptive{};
inline constexpr DraftOptions kFixed{.mode = DraftOptions::Mode::fixed};

struct Random {
  uint64_t state;
  double uniform() {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return double(state >> 11) * 0x1p-53;
  }
};

/// What a round costs and how good the draft is.
struct World {
  std::function<double(uint32_t num_drafts)> ns;
  std::function<double(uint64_t num_tokens, uint32_t draft)> acceptance;  ///< given that those before were accepted
  double noise = 0.0;          ///< +- relative
  double context_row = 0.0;    ///< ns; rounds that do not draft make rows of context when many are pending
  double outlier_rate = 0.0;   ///< rounds that take 20 times as long, in the measurement and in truth
  /// The lead of a draft and its acceptance, instead of `acceptance`: rounds then narrow.
  std::function<std::pair<float, double>(Random& random)> told = nullptr;
};

struct Result {
  double ns = 0;
  uint64_t num_tokens = 0, num_rounds = 0;
  std::vector<uint32_t> widths;
  std::vector<uint64_t> tokens_before;
  double ns_per_token() const { return ns / double(num_tokens); }
};

/// A generation whose beginning `width` has been told of.
inline Result simulate_rounds(DraftWidth& width, const World& world, uint64_t num_tokens, uint64_t seed = 1) {
  Random random{seed};
  Result result;
  uint32_t context_rows = 0;
  while (result.num_tokens < num_tokens) {
    const auto limit = uint32_t(std::min<uint64_t>(num_tokens - result.num_tokens, kMaxBlockSize)) - 1;
    RoundOutcome round;
    round.num_drafts = width.choose(limit);
    CHECK(round.num_drafts <= limit);
    std::vector<float> scores;
    std::vector<double> chances;
    if (world.told && round.num_drafts && width.narrows()) {
      for (uint32_t i = 0; i < std::min(limit, width.max_drafts()); ++i) {
        const auto [lead, chance] = world.told(random);
        scores.push_back(lead);
        chances.push_back(chance);
      }
      round.num_drafts = width.narrow(scores);
      CHECK(round.num_drafts >= 1 && round.num_drafts <= scores.size());
      round.scores = {scores.data(), round.num_drafts};
    }
    const auto chance = [&](uint32_t draft) {
      return scores.empty() ? world.acceptance(result.num_tokens, draft) : chances[draft];
    };
    while (round.num_accepted < round.num_drafts && random.uniform() < chance(round.num_accepted))
      ++round.num_accepted;
    if (round.num_drafts || context_rows >= kLazyContextRows) round.num_context_rows = std::exchange(context_rows, 0);
    double ns = world.ns(round.num_drafts) * (1.0 + world.noise * (2.0 * random.uniform() - 1.0));
    if (random.uniform() < world.outlier_rate) ns *= 20;
    ns += world.context_row * round.num_context_rows;
    round.ns = uint64_t(ns);
    context_rows += 1 + round.num_accepted;
    width.observe(round);
    result.ns += ns;
    result.widths.push_back(round.num_drafts);
    result.tokens_before.push_back(result.num_tokens);
    result.num_tokens += 1 + round.num_accepted;
    ++result.num_rounds;
  }
  return result;
}

inline Result simulate(DraftWidth& width, const World& world, uint64_t num_tokens, uint64_t seed = 1) {
  width.begin(num_tokens, width.budget());
  return simulate_rounds(width, world, num_tokens, seed);
}

/// Round times: a draft costs `draft`, a row `row`, in plain rounds of 10 ms.
inline std::function<double(uint32_t)> affine(double draft, double row) {
  return [=](uint32_t n) { return 1e7 * (n ? 1.0 + draft + row * n : 1.0); };
}
inline const std::function<double(uint32_t)> kCosts[] = {affine(0.05, 0.01), affine(0.1, 0.1), affine(0.15, 0.25),
                                                  affine(0.5, 0.5),   affine(0.3, 0.02), affine(3.0, 0.01)};

inline double never(uint64_t, uint32_t) { return 0.0; }
inline double always(uint64_t, uint32_t) { return 1.0; }

}  // namespace mimo_rt::fixture
