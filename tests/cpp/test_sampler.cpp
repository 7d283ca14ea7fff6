// The sampler against exact enumeration in long double, with chi-square tests of the draws.
//
// Bounds: the p-value of a correct sampler is uniform, so a test at kAlpha / kNumChiSquareTests
// fails with probability below kAlpha; seeds are fixed, so it fails always or never. Controls:
// deliberately wrong distributions must be rejected far below that level.
#include "check.h"
#include "sampling/arithmetic.h"
#include "sampling/candidates.h"
#include "sampling/exp_block.h"
#include "sampling/fixed_exp.h"
#include "sampling/philox.h"
#include "sampling/sampler.h"
#include "sampler_draws.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

using namespace mimo_rt;
using namespace sampler_reference;

namespace {

constexpr double kAlpha = 1e-3;
constexpr int kNumChiSquareTests = 17;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

}  // namespace

TEST_CASE("philox: published known answers") {
  // kat_vectors of the Random123 distribution, philox4x32 10.
  const auto zero = philox4x32_10({0, 0, 0, 0}, {0, 0});
  CHECK((zero == PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const auto ones = philox4x32_10({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u});
  CHECK((ones == PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  const auto pi = philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                                {0xa4093822, 0x299f31d0});
  CHECK((pi == PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
  const auto control = philox4x32_10({1, 0, 0, 0}, {0, 0});
  CHECK(control != zero);
}

TEST_CASE("uniform_bits_at: 53 bits, keyed by each of its arguments") {
  // From the first known answer: (0x6627e8d5 >> 5) * 2^26 + (0xe169c58d >> 6).
  CHECK_EQ(uniform_bits_at(0, 0, 0, 0), (0x6627e8d5ull >> 5 << 26) + (0xe169c58du >> 6));
  const uint64_t base = uniform_bits_at(1, 2, 3, 4);
  for (const uint64_t other : {uniform_bits_at(2, 2, 3, 4), uniform_bits_at(1, 3, 3, 4), uniform_bits_at(1, 2, 4, 4),
                               uniform_bits_at(1, 2, 3, 5), uniform_bits_at(1ull << 40 | 1, 2, 3, 4),
                               uniform_bits_at(1, 1ull << 40 | 2, 3, 4)})
    CHECK(other != base);
  constexpr int kBins = 64, kDraws = 64000;
  double bins[kBins] = {}, statistic = 0;
  for (uint32_t i = 0; i < kDraws; ++i) {
    const uint64_t bits = uniform_bits_at(99, 1, i, 0);
    CHECK(bits < uint64_t{1} << 53);
    ++bins[bits * kBins >> 53];
  }
  for (const double count : bins) statistic += (count - 1000) * (count - 1000) / 1000;
  CHECK(chi_square_tail(statistic, kBins - 1) > kAlpha / kNumChiSquareTests);
}

TEST_CASE("chi_square_tail: textbook quantiles") {
  CHECK(std::abs(chi_square_tail(3.841458820694124, 1) - 0.05) < 1e-12);
  CHECK(std::abs(chi_square_tail(23.20925115895436, 10) - 0.01) < 1e-12);
  CHECK(std::abs(chi_square_tail(9.341818, 10) - 0.5) < 1e-6);
}

TEST_CASE("fixed_exp: within two units of the last place of long double exp") {
  double worst = 0;
  for (int i = 0; i <= 700'000; ++i) {
    const double x = -i * 1e-3;
    const long double want = std::exp(static_cast<long double>(x));
    worst = std::max(worst, double(std::abs(fixed_exp(x) - want) / want));
  }
  CHECK(worst < 0x1p-51);
  CHECK_EQ(fixed_exp(0.0), 1.0);
  CHECK_EQ(fixed_exp(-701.0), 0.0);
  CHECK_EQ(fixed_exp(-HUGE_VAL), 0.0);
}

TEST_CASE("fixed_exp_block: the bits of fixed_exp, one by one") {
  for (int block = 0; block < 200; ++block) {
    double x[kExpBlock], y[kExpBlock];
    for (uint32_t i = 0; i < kExpBlock; ++i) x[i] = -(block * 0.37 + i * (block % 3 ? 0.011 : 11.7));
    if (block % 2) x[0] = -HUGE_VAL, x[7] = 0.0, x[63] = -1e300;
    fixed_exp_block(x, y);
    for (uint32_t i = 0; i < kExpBlock; ++i)
      CHECK_EQ(std::bit_cast<uint64_t>(y[i]), std::bit_cast<uint64_t>(fixed_exp(x[i])));
  }
}

TEST_CASE("greedy: lowest index among equal maxima; NaN and infinity never win") {
  const auto greedy = [](std::vector<float> logits, std::vector<int32_t> masked = {}) {
    return Draws{logits, sampling(0), {}, std::move(masked)}.at(0).token_id;
  };
  CHECK_EQ(greedy({1, 3, 2, 3}), 1);
  CHECK_EQ(greedy({kNan, -kInf, kInf, -5, -4}), 4);
  CHECK_EQ(greedy({kNan, kNan}), -1);
  CHECK_EQ(greedy({kInf, -kInf}), -1);
  CHECK_EQ(greedy({-0.0f, 0.0f}), 0);
  CHECK_EQ(greedy({1, 3, 2, 3}, {1}), 3);
  CHECK_EQ(greedy({1, 3, 2, 3}, {0, 1, 3}), 2);
  CHECK_EQ(greedy({1, 3}, {0, 1}), -1);
  const std::vector<float> broken = {kNan, kNan, kInf};
  CHECK_EQ((Draws{broken, sampling(1, 2, 0.5f, 0.1f)}.at(0).token_id), -1);
}

TEST_CASE("greedy on long rows: the scan in blocks equals a plain loop") {
  for (uint32_t n = 1; n < 300; n += n < 70 ? 1 : 17) {
    std::vector<float> logits = random_logits(n, 0.02f, n);  // many equal logits
    std::vector<int32_t> masked;
    for (uint32_t i = 0; i < n; ++i) {
      if ((i * 7 + n) % 61 == 0) logits[i] = i % 3 == 0 ? kNan : i % 3 == 1 ? kInf : -kInf;
      if ((i * 5 + n) % 89 == 0) masked.push_back(int32_t(i));  // and whole blocks without any of these
    }
    std::vector<uint32_t> counts(n);
    for (uint32_t i = 0; i < n; i += 3) counts[i] = i % 2 + 1;
    for (const float penalty : {1.0f, 1.3f, 0.8f}) {  // one below 1 raises scores above their logits
      const Draws draws{logits, sampling(0, 0, 1, 0, penalty), counts, masked};
      int32_t want = -1;
      for (uint32_t i = 0; i < n; ++i)
        if (std::isfinite(logits[i]) && !std::count(masked.begin(), masked.end(), int(i)) &&
            (want < 0 || plain_score(draws, i) > plain_score(draws, uint32_t(want))))
          want = int32_t(i);
      CHECK_EQ(draws.at(0).token_id, want);
    }
  }
}

TEST_CASE("draws on long rows: blocks and skipped logits change no token") {
  const std::vector<SamplingParams> cases = {sampling(1),          sampling(0.3f, 40),
                                             sampling(0.7f, 0, 0.9f), sampling(0.05f, 0, 1, 0.01f),
                                             sampling(1e-30f),     sampling(2, 130, 0.8f, 0.02f),
                                             sampling(1, 0, 1, 0.05f), sampling(0.5f, 0, 1, 1),
                                             sampling(1, 0, 1, 1e-14f), sampling(1, 0, 1, 0.05f, 1.2f),
                                             sampling(3, 0, 0.3f, 0.3f), sampling(3, 0, 0.05f),
                                             sampling(1, 40, 1, 0, 1.2f), sampling(1, 0, 1, 0.05f, 0.9f)};
  int num_distinct = 0;
  for (uint32_t n = 1; n < 1500; n += n < 140 ? 7 : 171)
    for (const SamplingParams& params : cases) {
      Draws draws{random_logits(n, n % 2 ? 6.0f : 0.02f, n), params};
      for (uint32_t i = 0; i < n; ++i) {
        draws.logits[i] += n % 3 ? 0.0f : 1e6f;  // where one step of a float is more than the temperature
        if ((i * 7 + n) % 101 == 0) draws.logits[i] = i % 3 == 0 ? kNan : i % 3 == 1 ? kInf : -kInf;
        const bool ends_block = i % 64 == 63 || i % 64 == 0 || i + 1 == n;  // of the blocks that weights are summed in
        if ((i * 5 + n) % 89 == 0 || (n % 5 == 1 && ends_block)) draws.masked.push_back(int32_t(i));
        else if (n % 4 == 1 && i % 21 < 2) draws.params.logit_bias.push_back({int32_t(i), i % 2 ? 4.0f : -3.0f});
        if (params.repetition_penalty != 1.0f) draws.counts.push_back(i % 4 == 0);
      }
      int32_t last = -2;
      for (uint32_t position = 0; position < 4; ++position) {
        const int32_t want = plain_draw(draws, position);
        CHECK_EQ(draws.at(position).token_id, want);
        num_distinct += want != last && last >= 0, last = want;
      }
    }
  CHECK(num_distinct > 100);  // the draws do draw
}

TEST_CASE("the lead of a logit: over the largest of all others, for any place and length") {
  for (const uint32_t size : {1u, 2u, 17u, 64u, 65u, 300u}) {
    std::vector<float> logits(size);
    std::vector<int32_t> ids(size);
    for (uint32_t i = 0; i < size; ++i) {
      logits[i] = float((i * 7919u) % 1009u) / 64.0f - 8.0f;
      ids[i] = int32_t(3 * i + 1);
    }
    for (uint32_t token = 0; token < size; ++token) {
      float other = -kInf;
      for (uint32_t i = 0; i < size; ++i)
        if (i != token) other = std::max(other, logits[i]);
      CHECK_EQ(logit_lead({logits.data(), size}, int32_t(token)), logits[token] - other);
      CHECK_EQ(logit_lead({logits.data(), size, ids.data()}, ids[token]), logits[token] - other);
      CHECK_EQ(logit_lead({logits.data(), size, ids.data()}, ids[token] + 1), 0.0f);  // a token without a logit
    }
  }
  const float odd[] = {1.0f, kNan, 3.0f, -kInf};
  CHECK_EQ(logit_lead({odd, 4}, 2), 2.0f);
}

TEST_CASE("repetition penalty: divides positive, multiplies negative logits of seen tokens") {
  const std::vector<float> positive = {2.0f, 1.9f, 0}, negative = {-2.0f, -1.9f, -9};
  CHECK_EQ((Draws{positive, sampling(0, 0, 1, 0, 1.1f), {1, 0, 0}}.at(0).token_id), 1);
  CHECK_EQ((Draws{negative, sampling(0, 0, 1, 0, 1.1f), {0, 3, 0}}.at(0).token_id), 0);
  CHECK_EQ((Draws{positive, sampling(0, 0, 1, 0, 1.0f), {1, 0, 0}}.at(0).token_id), 0);
}

TEST_CASE("logit bias: added before the penalty, never to what is masked or not finite") {
  const auto greedy = [](std::vector<float> logits, std::vector<TokenBias> bias,
                         std::vector<uint32_t> counts = {}, std::vector<int32_t> masked = {}) {
    SamplingParams params = sampling(0, 0, 1, 0, counts.empty() ? 1.0f : 2.0f);
    params.logit_bias = std::move(bias);
    return Draws{logits, params, std::move(counts), std::move(masked)}.at(0).token_id;
  };
  CHECK_EQ(greedy({1, 3, 2}, {}), 1);
  CHECK_EQ(greedy({1, 3, 2}, {{2, 1.5f}}), 2);
  CHECK_EQ(greedy({1, 3, 2}, {{1, -100}}), 2);
  CHECK_EQ(greedy({1, 3, 2}, {{0, 5}, {1, 1}, {2, 5}}), 2);
  CHECK_EQ(greedy({1, 3, kNan}, {{2, 100}}), 1);
  CHECK_EQ(greedy({1, 3, 2}, {{2, 100}}, {}, {2}), 1);
  CHECK_EQ(greedy({1, 3, 2}, {{0, 9}, {2, 100}}, {}, {0, 2}), 1);
  CHECK_EQ(greedy({1, 3, 2}, {{0, 9}, {2, 2}}, {}, {0}), 2);  // a mask and a bias on one token, then a bias
  CHECK_EQ(greedy({1, 3, 2, 0}, {{0, 1}, {2, 9}}, {}, {2}), 1);  // the loop must not go back to the mask
  // (-1 + 3.9) / 2 < 1.5 < (-1 + 4.4) / 2; the penalty first would make -1 * 2 + 3.9 of the former, and win.
  CHECK_EQ(greedy({-1, 1.5f}, {{0, 3.9f}}, {1, 0}), 1);
  CHECK_EQ(greedy({-1, 1.5f}, {{0, 4.4f}}, {1, 0}), 0);
}

TEST_CASE("draws follow the enumerated distribution (chi-square)") {
  const std::vector<float> small = random_logits(12, 2, 1), large = random_logits(3000, 3, 2);
  std::vector<float> holes = random_logits(40, 1.5f, 3), ties(20, 0.5f);
  for (const size_t i : {3, 4, 17, 30}) holes[i] = i % 2 ? kNan : -kInf;
  std::vector<uint32_t> counts(12);
  for (const size_t i : {0, 5, 6, 11}) counts[i] = 1 + uint32_t(i);
  SamplingParams biased = sampling(1.2f, 9, 0.95f, 0, 1.3f);
  biased.logit_bias = {{0, -3}, {2, 2.5f}, {9, 1}, {11, -100}};
  const std::vector<Draws> cases = {
      {small, biased, counts, {2}},
      {small, sampling(1)},
      {small, sampling(0.6f)},
      {small, sampling(1.7f, 5)},
      {small, sampling(1, 0, 0.8f)},
      {small, sampling(1, 0, 1, 0.1f)},
      {small, sampling(1, 0, 1, 0, 1.6f), counts},
      {small, sampling(1.3f, 7, 0.9f, 0.05f, 1.3f), counts, {2, 9}},
      {holes, sampling(1, 20, 0.95f)},
      {ties, sampling(1, 7)},
      {ties, sampling(1, 0, 0.5f)},
      {large, sampling(1)},
      {large, sampling(1, 50)},
      {large, sampling(1, 0, 0.7f)},
      {large, sampling(1.5f, 900, 0.9f, 0.001f), {}, {}, 1234567890123ull},
  };
  CHECK(cases.size() <= kNumChiSquareTests - 2);  // two more below
  for (size_t i = 0; i < cases.size(); ++i) {
    const double p = p_value(cases[i], enumerate(cases[i]), 30'000);
    CHECK(p > kAlpha / kNumChiSquareTests);
    if (p <= kAlpha / kNumChiSquareTests) std::fprintf(stderr, "case %zu: p = %g\n", i, p);
  }
}

TEST_CASE("control: a wrong sampler is caught by the same test") {
  const std::vector<float> logits = random_logits(12, 2, 1);
  const auto rejected = [&](SamplingParams actual, SamplingParams claimed) {
    return p_value({logits, actual}, enumerate(Setting{logits, claimed}), 30'000) < 1e-9;
  };
  CHECK(rejected(sampling(1.1f), sampling(1)));                     // temperature off by 10 %
  CHECK(rejected(sampling(1, 6), sampling(1, 5)));                  // one token too many
  CHECK(rejected(sampling(1, 4), sampling(1, 5)));                  // one too few
  CHECK(rejected(sampling(1, 0, 0.85f), sampling(1, 0, 0.8f)));     // nucleus too large
  CHECK(rejected(sampling(1, 0, 1, 0.2f), sampling(1, 0, 1, 0.1f)));
  SamplingParams biased = sampling(1);
  biased.logit_bias = {{8, 0.3f}};  // the best token
  CHECK(rejected(biased, sampling(1)));
  // A constant "random" number: all draws at one position.
  const Draws good{logits, sampling(1)};
  std::vector<long double> point(logits.size());
  point[size_t(good.at(0).token_id)] = 1;
  CHECK(p_value(good, point, 1000) < 1e-9);
}

TEST_CASE("successive draws are independent: pairs follow the product distribution") {
  const std::vector<float> logits = {0, 1, 2, 0.5f};
  const Draws draws{logits, sampling(1)};
  const auto p = enumerate(draws);
  double pairs[4][4] = {}, statistic = 0;
  constexpr uint32_t kPairs = 40'000;
  for (uint32_t i = 0; i < kPairs; ++i)
    ++pairs[draws.at(2 * i).token_id][draws.at(2 * i + 1).token_id];
  for (int a = 0; a < 4; ++a)
    for (int b = 0; b < 4; ++b) {
      const double want = static_cast<double>(p[size_t(a)] * p[size_t(b)]) * kPairs;
      statistic += (pairs[a][b] - want) * (pairs[a][b] - want) / want;
    }
  CHECK(chi_square_tail(statistic, 15) > kAlpha / kNumChiSquareTests);
}

TEST_CASE("top-k and top-p keep exactly the enumerated support, ties by index") {
  const std::vector<float> ties = {1, 2, 2, 2, 0, 2};
  const auto support = [&](const Draws& draws) {
    std::vector<int32_t> seen;
    for (uint32_t i = 0; i < 400; ++i) seen.push_back(draws.at(i).token_id);
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    return seen;
  };
  CHECK((support({ties, sampling(1, 2)}) == std::vector<int32_t>{1, 2}));
  CHECK((support({ties, sampling(1, 3)}) == std::vector<int32_t>{1, 2, 3}));
  const std::vector<float> four(4, 1.0f);
  CHECK((support({four, sampling(1, 0, 0.5f)}) == std::vector<int32_t>{0, 1}));   // exactly 0.5
  CHECK((support({four, sampling(1, 0, 0.51f)}) == std::vector<int32_t>{0, 1, 2}));
  CHECK((support({four, sampling(1, 0, 1e-30f)}) == std::vector<int32_t>{0}));
  CHECK((support({four, sampling(1e-30f)}) == std::vector<int32_t>{0, 1, 2, 3}));
  CHECK((support({ties, sampling(1e-3f, 0, 1, 0.999f)}) == std::vector<int32_t>{1, 2, 3, 5}));
  for (uint32_t k = 1; k <= 3000; k = k * 3 + 1) {  // selection equals a full sort at every size
    const std::vector<float> logits = random_logits(3000, 0.01f, k);  // many equal logits
    std::vector<Candidate> sorted(3000), buffer(3000);
    for (uint32_t i = 0; i < 3000; ++i) sorted[i] = {logits[i], 0, i};
    TopSelector top(buffer.data(), TopSelector::capacity_for(k, 3000), std::min(k, 2999u));
    for (const Candidate& c : sorted) top.add(c.score, c.token_id);
    CHECK_EQ(top.finish(), std::min(k, 2999u));
    std::sort(sorted.begin(), sorted.end(), ByScore{});
    std::sort(buffer.begin(), buffer.begin() + std::min(k, 2999u), ByScore{});
    bool equal = true;
    for (uint32_t i = 0; i < std::min(k, 2999u); ++i)
      equal &= sorted[i].token_id == buffer[i].token_id;
    CHECK(equal);
  }
}

TEST_CASE("draws depend on seed, sequence and position alone") {
  const std::vector<float> logits = random_logits(500, 2, 9);
  const Draws draws{logits, sampling(1, 40, 0.95f)};
  std::vector<int32_t> forward, backward;
  for (uint32_t i = 0; i < 200; ++i) forward.push_back(draws.at(i).token_id);
  for (uint32_t i = 200; i-- > 0;) backward.insert(backward.begin(), draws.at(i).token_id);
  CHECK(forward == backward);
  Draws seeded = draws;
  seeded.params.seed = 8;
  const Draws sequence{logits, draws.params, {}, {}, 1};
  int same_seed = 0, same_sequence = 0;
  for (uint32_t i = 0; i < 200; ++i) {
    same_seed += seeded.at(i).token_id == forward[i];
    same_sequence += sequence.at(i).token_id == forward[i];
  }
  CHECK(same_seed < 150 && same_sequence < 150);  // control: keys matter
}

TEST_CASE("logprobs: log softmax of the raw logits, best first") {
  std::vector<float> logits = random_logits(700, 3, 4);
  logits[5] = kNan;
  Draws draws{logits, sampling(0.5f, 3, 0.9f, 0.1f, 1.5f), std::vector<uint32_t>(700, 1), {7}};
  draws.params.num_logprobs = kMaxLogprobs;
  const SampleResult result = draws.at(0);
  const auto raw = enumerate(Setting{logits, sampling(1)});
  const auto near = [&](const TokenLogprob& got) {
    const auto want = double(std::log(raw[size_t(got.token_id)]));
    // one float rounding of the result plus float64 rounding of a sum of 700 terms
    return std::abs(got.logprob - want) <= std::abs(want) * 0x1p-24 + 700 * 0x1p-52;
  };
  CHECK(near({result.token_id, result.logprob}));
  CHECK_EQ(result.num_alternatives, kMaxLogprobs);
  for (uint32_t i = 0; i < result.num_alternatives; ++i) {
    CHECK(near(result.alternatives[i]));
    if (i) CHECK(result.alternatives[i].logprob <= result.alternatives[i - 1].logprob);
  }
  CHECK(!near({result.token_id, result.logprob + 1e-5f}));  // control
  const std::vector<float> two = {0, kNan, 1};
  SamplingParams greedy = sampling(0);
  greedy.num_logprobs = 5;
  CHECK_EQ((Draws{two, greedy}.at(0).num_alternatives), 2u);
}

CHECK_MAIN()
