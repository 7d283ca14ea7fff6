// What generations learn from each other, in simulation, and that together they lose no more than one alone may.
#include "check.h"
#include "draft_simulation.h"
#include "engine/draft_learning.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

constexpr DraftOptions kOff{.mode = DraftOptions::Mode::off};

DraftLearning::Loan begin(DraftLearning& learning, uint64_t num_tokens, const DraftOptions& options = kAdaptive) {
  return {learning, options, 8, DraftSource::model, num_tokens};
}

}  // namespace

TEST_CASE("useless drafts and short generations: within 3 % together, and each but for a drafted round") {
  for (const auto& cost : kCosts)
    for (const uint64_t num_tokens : {32, 64, 128, 256}) {
      const double plain_ns = double(num_tokens) * cost(0);
      double all_ns = 0;
      DraftLearning learning;
      for (uint64_t i = 0; i < 50; ++i) {
        DraftLearning::Loan loan = begin(learning, num_tokens);
        const double ns = simulate_rounds(loan.width, {cost, never}, num_tokens).ns;
        const int num_spare = i == 0 ? 2 : 1;  // the very first may be slower than is believed
        CHECK(ns < 1.03 * plain_ns + num_spare * (cost(7) - cost(0)));
        all_ns += ns;
      }
      CHECK(all_ns < 1.03 * 50.0 * plain_ns);
    }
  // Control: who begins anew every time pays for it every time.
  double forgetful_ns = 0;
  for (uint64_t i = 0; i < 50; ++i) {
    DraftLearning learning;
    DraftLearning::Loan loan = begin(learning, 64);
    forgetful_ns += simulate_rounds(loan.width, {kCosts[3], never}, 64).ns;
  }
  CHECK(forgetful_ns > 1.03 * 50.0 * 64.0 * kCosts[3](0));
}

TEST_CASE("a budget that is spent does not come back from generations that overlap") {
  constexpr uint64_t kTokens = 64;
  const auto& cost = kCosts[3];
  double all_ns = 0, num_tokens = 0;
  DraftLearning learning;
  for (uint64_t i = 0; i < 25; ++i) {
    DraftLearning::Loan idle = begin(learning, kTokens, kOff), first = begin(learning, kTokens), second = begin(learning, kTokens);
    for (DraftLearning::Loan* loan : {&first, &second}) {
      all_ns += simulate_rounds(loan->width, {cost, never}, kTokens).ns;
      num_tokens += kTokens;
    }
    all_ns += simulate_rounds(idle.width, {cost, never}, kTokens).ns;
    num_tokens += kTokens;
  }
  CHECK(all_ns < 1.03 * num_tokens * cost(0));
}

TEST_CASE("whoever learns nothing takes nothing from the others") {
  DraftLearning learning;
  {
    DraftLearning::Loan idle = begin(learning, 8, kOff);  // ends last, and knows what was known before the others
    DraftLearning::Loan unused = begin(learning, 8);
    DraftLearning::Loan busy = begin(learning, 500);
    simulate_rounds(busy.width, {kCosts[1], always}, 500);
    simulate_rounds(idle.width, {kCosts[1], always}, 8);
  }
  DraftLearning::Loan next = begin(learning, 500);
  CHECK_EQ(next.width.choose(15), 7u);
  CHECK_EQ(next.width.stats().num_rounds, 0u);
  CHECK_EQ(begin(learning, 500, {.num_draft_tokens = 3}).width.choose(15), 3u);
  CHECK_EQ(begin(learning, 500, kOff).width.choose(15), 0u);
  DraftLearning other;
  CHECK_EQ(begin(other, 500).width.choose(15), 0u);  // control: the first rounds measure plain decoding
}

TEST_CASE("the budget is bounded, whatever was gained and granted") {
  DraftLearning learning;
  double granted = 0;
  for (uint64_t i = 0; i < 20; ++i) {
    DraftLearning::Loan loan = begin(learning, 100);
    granted = loan.width.budget().granted;
    CHECK(loan.width.budget().credit <= DraftBudget::kMaxCredit);
    simulate_rounds(loan.width, {kCosts[0], always}, 200);
    CHECK(loan.width.budget().credit <= DraftBudget::kMaxCredit);
  }
  CHECK_EQ(granted, DraftBudget::kMaxGranted);
  DraftLearning::Loan half = begin(learning, 100);
  CHECK(half.width.budget().credit <= DraftBudget::kMaxCredit / 2);  // for another one to begin with
}

TEST_CASE("generations that share steps look now and then what their own rounds would bring, however short they are") {
  DraftLearning learning;
  {
    DraftLearning::Loan first = begin(learning, 100);
    simulate_rounds(first.width, {kCosts[1], never}, 100);
  }
  const auto step_ns = uint64_t(kCosts[1](0));
  uint32_t num_alone = 0;
  for (uint32_t i = 0; i < 2600; i += 65) {
    DraftLearning::Loan loan = begin(learning, 65);
    for (uint32_t round = 0; round < 65; ++round) {
      const bool shares = loan.width.shares_round(8, double(step_ns));
      num_alone += !shares;
      loan.width.observe({.ns = step_ns, .had_drafts = !shares, .spent = shares ? 1.0 : 0.0});
    }
  }
  CHECK_EQ(num_alone, 40u);
}

CHECK_MAIN()
