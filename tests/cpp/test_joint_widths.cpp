// How many drafts a shared step verifies, and what is believed of the time of steps.
#include "draft_simulation.h"
#include "engine/draft_learning.h"
#include "engine/joint_widths.h"

#include <cmath>
#include <numeric>
#include <utility>

using namespace mimo_rt;
using namespace fixture;

namespace {

double line_ns(uint32_t num_rows) { return 5e6 + 2e6 * num_rows; }

StepTimes times_of(double (*ns)(uint32_t)) {
  StepTimes times;
  for (uint32_t i = 0; i < 60; ++i) times.add(1 + i % 8, ns(1 + i % 8));
  return times;
}

DraftOffer offer_of(std::vector<double> confirmed, double credit = 10.0, uint32_t least = 0) {
  DraftOffer offer{.num_drafts = uint32_t(confirmed.size()), .least = least, .credit = credit};
  std::ranges::copy(confirmed, offer.confirmed.begin());
  return offer;
}

std::vector<uint32_t> widths_of(const std::vector<DraftOffer>& offers, uint32_t max_rows = 64, StepTimes times = times_of(line_ns)) {
  std::vector<const DraftOffer*> pointers;
  for (const DraftOffer& offer : offers) pointers.push_back(&offer);
  return choose_joint_widths(pointers, max_rows, times);
}

using Widths = std::vector<uint32_t>;

/// Sessions with lookups that share all steps; half of their rounds find something, with matches of 1 to 4 tokens.
struct Shared {
  explicit Shared(uint32_t num_sessions, uint64_t max_tokens = 1000) : widths(num_sessions, {kAdaptive, 8, DraftSource::ngram_lookup}) {
    for (DraftWidth& width : widths) width.begin(max_tokens, {});
  }

  /// Time per token and session, in steps without drafts.
  double run(uint32_t num_steps, double (*ns)(uint32_t), const std::function<double(float score)>& chance) {
    double spent = 0.0, num_tokens = 0.0;
    for (uint32_t step = 0; step < num_steps; ++step) {
      std::vector<std::vector<float>> scores(widths.size());
      std::vector<DraftOffer> offers;
      std::vector<const DraftOffer*> pointers;
      for (size_t i = 0; i < widths.size(); ++i) {
        const float match = i >= num_without && random.uniform() < 0.5 ? std::floor(1 + 4 * float(random.uniform())) : 0.0f;
        for (uint32_t n = 0; match > 0.0f && n < 7; ++n) scores[i].push_back(match + float(n));
        offers.push_back(widths[i].offer(scores[i]));
      }
      for (const DraftOffer& offer : offers) pointers.push_back(&offer);
      const Widths chosen = choose_joint_widths(pointers, 64, times);
      const auto num_rows = std::accumulate(chosen.begin(), chosen.end(), uint32_t(widths.size()));
      for (size_t i = 0; i < widths.size(); ++i) {
        RoundOutcome round{.num_drafts = chosen[i], .had_drafts = !scores[i].empty()};
        round.spent = times.at(num_rows) / times.at(uint32_t(widths.size()));
        round.scores = {scores[i].data(), chosen[i]};
        while (round.num_accepted < chosen[i] && random.uniform() < chance(scores[i][round.num_accepted])) ++round.num_accepted;
        widths[i].observe(round);
        num_tokens += 1 + round.num_accepted;
      }
      const double took = ns(num_rows) * (0.95 + 0.1 * random.uniform());
      times.add(num_rows, took);
      spent += took;
      ns_of_all += took;
    }
    const double plain = ns(uint32_t(widths.size())) / double(widths.size());
    return spent / num_tokens / plain;
  }

  std::vector<DraftWidth> widths;
  uint32_t num_without = 0;  ///< the first sessions, which never find anything
  StepTimes times;
  Random random{1};
  double ns_of_all = 0.0;
};

const std::vector<float> kLongMatch = {8, 9, 10, 11, 12, 13, 14};

/// Rounds of one session, all of whose drafts are right.
void decode_alone(DraftWidth& width, uint32_t num_rounds) {
  for (uint32_t i = 0; i < num_rounds; ++i) {
    const uint32_t num_drafts = width.choose_among(kLongMatch);
    width.observe({.num_drafts = num_drafts, .num_accepted = num_drafts, .ns = uint64_t(line_ns(1 + num_drafts)),
                   .scores = {kLongMatch.data(), num_drafts}});
  }
}

double cheap_ns(uint32_t num_rows) { return 5e6 + 3e5 * num_rows; }

}  // namespace

TEST_CASE("the time of a step follows the line through steps of late, also when the machine becomes slower") {
  StepTimes times = times_of(line_ns);
  for (const uint32_t rows : {1u, 4u, 9u, 20u}) CHECK(std::abs(times.at(rows) / line_ns(rows) - 1.0) < 0.02);
  times.add(4, 40 * line_ns(4));  // interrupted
  CHECK(times.at(4) < 1.1 * line_ns(4));
  for (uint32_t i = 0; i < 200; ++i) times.add(1 + i % 8, 3 * line_ns(1 + i % 8));
  for (const uint32_t rows : {1u, 9u}) CHECK(std::abs(times.at(rows) / (3 * line_ns(rows)) - 1.0) < 0.05);
}

TEST_CASE("a first step that was interrupted does not make rows look dear") {
  StepTimes times;
  times.add(8, 10 * line_ns(8));
  for (uint32_t i = 0; i < 3; ++i) times.add(2, line_ns(2));
  CHECK(times.at(8) < 1.5 * line_ns(8));
  times.add(8, line_ns(8));
  for (const uint32_t rows : {2u, 8u}) CHECK(std::abs(times.at(rows) / line_ns(rows) - 1.0) < 0.05);
}

TEST_CASE("steps of one size say nothing about rows: a row costs a guess, and never less than nothing or more than its share") {
  StepTimes times;
  CHECK(times.at(2) > times.at(1));
  for (uint32_t i = 0; i < 300; ++i) times.add(2, 8e6);
  CHECK(std::abs(times.at(2) - 8e6) < 1.0);
  CHECK(times.at(4) > 8.5e6 && times.at(4) < 12e6);
  const StepTimes falling = times_of([](uint32_t rows) { return 5e6 - 1e5 * rows; });
  CHECK_EQ(falling.at(9), falling.at(1));
  const StepTimes steep = times_of([](uint32_t rows) { return 1e6 * rows * rows; });
  CHECK(steep.at(1) > 0.0);
}

TEST_CASE("drafts are verified while they bring tokens faster, the likeliest of all sessions first") {
  CHECK((widths_of({offer_of({0.9, 0.8, 0.1}), offer_of({0.05, 0.01}), offer_of({})}) == Widths{2, 0, 0}));
  CHECK((widths_of({offer_of({0.99, 0.98, 0.97, 0.96}), offer_of({0.99, 0.98, 0.97})}) == Widths{4, 3}));
  CHECK((widths_of({offer_of({0.2}), offer_of({0.2})}) == Widths{0, 0}));
  // Nothing is gained where rows cost as much as steps, however right the drafts are.
  const StepTimes rows_only = times_of([](uint32_t rows) { return 1e6 * rows; });
  CHECK((widths_of({offer_of({0.9}), offer_of({0.9})}, 64, rows_only) == Widths{0, 0}));
}

TEST_CASE("the choice is the best of all choices") {
  const StepTimes times = times_of(line_ns);
  const std::vector<double> a = {0.7, 0.65, 0.3, 0.25}, b = {0.5, 0.45, 0.4}, c = {0.9, 0.2, 0.1};
  const auto rate = [&](const Widths& widths) {
    double tokens = 3;
    uint32_t rows = 3;
    for (const auto& [list, width] : {std::pair(&a, widths[0]), std::pair(&b, widths[1]), std::pair(&c, widths[2])})
      for (uint32_t i = 0; i < width; ++i, ++rows) tokens += (*list)[i];
    return tokens / times.at(rows);
  };
  double best = 0.0;
  for (uint32_t x = 0; x <= 4; ++x)
    for (uint32_t y = 0; y <= 3; ++y)
      for (uint32_t z = 0; z <= 3; ++z) best = std::max(best, rate({x, y, z}));
  CHECK_EQ(rate(widths_of({offer_of(a), offer_of(b), offer_of(c)})), best);
}

TEST_CASE("no more drafts than there is room for, than the credit pays, and no fewer than a session insists on") {
  const std::vector<double> sure(7, 1.0), hopeless(7, 0.0);
  CHECK((widths_of({offer_of(sure), offer_of(sure)}, 5) == Widths{3, 0}));
  CHECK((widths_of({offer_of(sure), offer_of(sure)}, 2) == Widths{0, 0}));
  CHECK((widths_of({offer_of(hopeless, 10.0, 7), offer_of(hopeless)}) == Widths{7, 0}));
  CHECK((widths_of({offer_of(hopeless, 10.0, 7), offer_of(hopeless, 10.0, 7)}, 11) == Widths{5, 4}));  // alike
  CHECK((widths_of({offer_of(hopeless, 10.0, 7), offer_of(hopeless, 10.0, 1), offer_of(hopeless, 10.0, 7)}, 10) == Widths{3, 1, 3}));
  // Steps of two rows take 9 ms, a row 2: whoever has the least credit decides.
  for (const double credit : {0.0, 0.2, 0.25, 0.5, 2.0}) {
    const auto num_drafts = uint32_t(credit * 9.0 / 2.0);
    CHECK((widths_of({offer_of(sure), offer_of({}, credit)}) == Widths{std::min(num_drafts, 7u), 0}));
    CHECK((widths_of({offer_of(hopeless, 10.0, 7), offer_of({}, credit)}) == Widths{std::min(num_drafts, 7u), 0}));
  }
  // Whoever may expect more of its own drafts needs none.
  CHECK((widths_of({offer_of(sure, 0.0), offer_of(sure, 0.0)}) == Widths{7, 7}));
  CHECK((widths_of({offer_of(sure, 0.0), offer_of(hopeless, 0.0)}) == Widths{0, 0}));
}

TEST_CASE("useless drafts cost sessions that share steps 3 % at most, and drafts that become right are found") {
  for (const uint32_t num_sessions : {1u, 2u, 4u, 8u})
    for (double (*ns)(uint32_t) : {line_ns, cheap_ns}) {
      Shared shared(num_sessions);
      const double useless = shared.run(1000, ns, [](float) { return 0.0; });
      CHECK(useless < 1.03);
      const double right = shared.run(1000, ns, [](float) { return 1.0; });
      // If it verified all drafts of the half of the rounds that have some, and knew everything.
      const double all = ns(num_sessions * 9 / 2) / 4.5 / ns(num_sessions);
      // Dear rows and many sessions: there is nearly always one that has run out of credit.
      const double most = ns == cheap_ns || num_sessions <= 4 ? 1.2 * all : 0.97;
      CHECK(right < most);
      if (useless >= 1.03 || right >= most)
        std::fprintf(stderr, "%u sessions: %g, %g of %g\n", num_sessions, useless, right, all);
    }
}

TEST_CASE("of drafts of all kinds those that pay are verified") {
  const auto chance = [](float score) { return score < 3.0f ? 0.1 : 0.9; };
  for (const auto& [num_sessions, most] : {std::pair(2u, 0.88), std::pair(4u, 0.96), std::pair(8u, 1.02)}) {
    Shared shared(num_sessions);
    shared.run(200, line_ns, chance);
    CHECK(shared.run(1000, line_ns, chance) < most);
  }
}

TEST_CASE("a session without drafts loses no more than 2 % to those of others") {
  for (const uint32_t num_sessions : {2u, 4u})
    for (double (*ns)(uint32_t) : {line_ns, cheap_ns}) {
      Shared shared(num_sessions);
      shared.num_without = 1;
      shared.run(2000, ns, [](float) { return 0.9; });
      CHECK(shared.ns_of_all < 1.03 * 2000 * ns(num_sessions));
      CHECK(shared.ns_of_all > 1.01 * 2000 * ns(num_sessions));  // what it may lose is used
      shared.num_without = 0;
      CHECK(shared.run(1000, ns, [](float) { return 0.9; }) < 0.95);
    }
}

TEST_CASE("what a session has gained alone pays for a few long steps, no more") {
  for (const uint32_t num_others : {1u, 3u, 7u}) {
    Shared shared(1 + num_others);
    for (DraftWidth& width : shared.widths) decode_alone(width, 500);
    CHECK_EQ(shared.widths[0].choose_among(kLongMatch), 7u);
    shared.num_without = 1;
    shared.run(500, line_ns, [](float) { return 1.0; });
    CHECK(shared.ns_of_all < (1.03 * 500 + 2 * DraftBudget::kMaxCredit) * line_ns(1 + num_others));
  }
}

TEST_CASE("what drafts save in shared steps pays there beyond what rounds alone may have, as much again at most") {
  DraftWidth width(kAdaptive, 8, DraftSource::ngram_lookup);
  width.begin(1000, {});
  decode_alone(width, 500);
  CHECK(width.offer(kLongMatch).credit <= DraftBudget::kMaxCredit);
  for (uint32_t i = 0; i < 50; ++i) {
    width.observe({.num_drafts = 7, .num_accepted = 7, .scores = kLongMatch, .spent = 1.5});
    CHECK(width.offer(kLongMatch).credit <= 2 * DraftBudget::kMaxCredit);
  }
  CHECK(width.offer(kLongMatch).credit > 1.9 * DraftBudget::kMaxCredit);
  for (uint32_t i = 0; i < 11; ++i) width.observe({.had_drafts = false, .spent = 2.0});
  CHECK(width.offer(kLongMatch).credit < DraftBudget::kMaxCredit);
}

/// A generation of an engine.
struct Generation : DraftLearning::Loan {
  Generation(DraftLearning& learning, const DraftOptions& options) : Loan(learning, options, 8, DraftSource::ngram_lookup, 500) {}
};
void generate_alone(DraftLearning& learning) {
  Generation alone(learning, kAdaptive);
  decode_alone(alone.width, 50);
}

TEST_CASE("shared rounds of fixed width cost no other generation its budget") {
  DraftLearning learning;
  generate_alone(learning);
  for (uint32_t n = 0; n < 4; ++n) {
    Generation fixed(learning, {.mode = DraftOptions::Mode::fixed});
    for (uint32_t i = 0; i < 200; ++i) fixed.width.observe({.num_drafts = 7, .scores = kLongMatch, .spent = 2.0});
  }
  CHECK_EQ(Generation(learning, kAdaptive).width.choose_among(kLongMatch), 7u);
}

TEST_CASE("a generation that only shared rounds makes no other forget its times") {
  DraftLearning learning;
  {
    Generation early(learning, kAdaptive);  // when nothing is known
    generate_alone(learning);
    early.width.observe({.had_drafts = false, .spent = 1.0});
  }
  CHECK_EQ(Generation(learning, kAdaptive).width.choose_among(kLongMatch), 7u);
}

CHECK_MAIN()
