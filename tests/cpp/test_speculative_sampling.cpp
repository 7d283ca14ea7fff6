// Losslessness with temperature: what rounds emit follows the enumerated distribution of the target, whatever was
// drafted.
//
// Bounds as in test_sampler.cpp: chi-square at kAlpha over the number of tests (Bonferroni), fixed seeds. Controls:
// wrong ways of accepting are rejected by the same test far below that level.
#include "check.h"
#include "round_fixture.h"
#include "sampler_reference.h"

#include <limits>
#include <numeric>

using namespace round_fixture;
using namespace sampler_reference;

namespace {

constexpr double kAlpha = 1e-3;
constexpr int kNumTests = 250;  // p-values compared in this file, at most
constexpr double kLevel = kAlpha / kNumTests;
constexpr uint32_t kVocab = 8;
constexpr float kNone = -std::numeric_limits<float>::infinity();
using Distribution = std::vector<long double>;
using Proposing = DraftOptions::Proposal;

struct NamedDraft {
  const char* name;
  Logits logits;
};

const Logits kTarget = {1.2f, -0.3f, 0.8f, 2.0f, -1.5f, 0.1f, 1.1f, -0.4f};
/// Half of the tokens are impossible, so that a draft can miss all others.
const Logits kHalf = {1.2f, kNone, 0.8f, kNone, 1.5f, kNone, 1.0f, kNone};

std::vector<NamedDraft> drafts_for(const Logits& target) {
  Logits biased = target, adversarial(kVocab, kNone);
  for (uint32_t i = 0; i < kVocab; ++i) {
    biased[i] = (std::isfinite(target[i]) ? target[i] : 0.0f) + (i % 3 ? -0.7f : 1.1f);
    if (!std::isfinite(target[i])) adversarial[i] = 0.3f * float(i);
  }
  if (adversarial == Logits(kVocab, kNone)) adversarial[4] = 3.0f, adversarial[1] = 2.0f;  // its least likely ones
  Logits point(kVocab, kNone);
  point[2] = 1.0f;
  return {{"biased", biased}, {"adversarial", adversarial}, {"identical", target}, {"point mass", point},
          {"uniform", Logits(kVocab, 0.0f)}};
}

struct NamedSetting {
  const char* name;
  Setting setting;
};

std::vector<NamedSetting> settings() {
  std::vector<uint32_t> counts = {1, 0, 2, 1, 0, 0, 0, 3};
  SamplingParams bias = sampling(0.9f);
  bias.logit_bias = {{1, 1.5f}, {3, -1.0f}};
  SamplingParams all = sampling(1.3f, 6, 0.9f, 0.05f, 1.4f);
  all.logit_bias = {{1, 1.5f}, {5, 0.5f}};
  return {{"plain", {kTarget, sampling(1)}},          {"cold", {kTarget, sampling(0.6f)}},
          {"top-k", {kTarget, sampling(1.1f, 4)}},    {"top-p", {kTarget, sampling(1, 0, 0.8f)}},
          {"min-p", {kTarget, sampling(1, 0, 1, 0.15f)}}, {"penalty", {kTarget, sampling(1, 0, 1, 0, 1.6f), counts}},
          {"bias", {kTarget, bias}},                  {"half", {kHalf, sampling(1)}},
          {"all", {kTarget, all, counts, {0}}}};
}

/// What was emitted after `position`, and how often the draft was accepted, over many rounds of one draft each.
struct Counts {
  std::vector<double> tokens = std::vector<double>(kVocab), accepted = {0, 0};
};

Counts count_rounds(const Setting& setting, const Logits& draft, Proposing proposal, uint32_t num_rounds) {
  const Toy toy{kVocab, [&](int32_t, uint32_t) { return setting.logits; },
                [&](int32_t, uint32_t, uint32_t) { return draft; }};
  Start start;
  start.params = setting.params;
  start.counts = setting.counts;
  start.stop_ids = setting.masked;
  start.min_tokens = start.max_tokens = 100;  // masks the stop ids
  start.sequence_id = 17;
  Rounds rounds(toy, start, {.mode = DraftOptions::Mode::fixed, .proposal = proposal}, 2);
  rounds.state->max_rounds = 1;
  Counts counts;
  for (uint32_t i = 0; i < num_rounds; ++i) {
    rounds.state->position = rounds.state->num_context = i;
    rounds.state->num_output = 1;
    rounds.output.counts = setting.counts;
    rounds.output.tokens.clear();
    rounds.run();
    ++counts.tokens[size_t(rounds.output.tokens[0].token_id)];
    ++counts.accepted[rounds.output.tokens.size() - 1];
  }
  return counts;
}

size_t best_of(const Setting& draft) {
  const Distribution q = enumerate(draft);
  return size_t(std::max_element(q.begin(), q.end()) - q.begin());
}

/// How likely the draft is accepted: sum of min(p, q), or p of the draft's best token.
long double acceptance(const Distribution& p, const Setting& draft, Proposing proposal) {
  if (proposal == Proposing::argmax) return p[best_of(draft)];
  const Distribution q = enumerate(draft);
  long double sum = 0;
  for (uint32_t i = 0; i < kVocab; ++i) sum += std::min(p[i], q[i]);
  return sum;
}

}  // namespace

TEST_CASE("one draft: tokens follow the target, acceptance follows the overlap, for every draft and filter") {
  for (const auto& [setting_name, setting] : settings())
    for (const auto& [draft_name, logits] : drafts_for(setting.logits))
      for (const Proposing proposal : {Proposing::argmax, Proposing::sampled}) {
        Setting draft = setting;
        draft.logits = logits;
        const Distribution p = enumerate(setting);
        const long double rate = acceptance(p, draft, proposal);
        const Counts counts = count_rounds(setting, logits, proposal, 20'000);
        const double p_tokens = p_value(counts.tokens, p);
        const double p_accepted = p_value(counts.accepted, {1 - rate, rate});
        CHECK(p_tokens > kLevel);
        // Identical distributions: the overlap sums to 1 but for rounding, so a rejection needs a guard.
        CHECK(rate > 1 - 1e-9L ? counts.accepted[0] == 0 : p_accepted > kLevel);
        if (p_tokens <= kLevel || p_accepted <= kLevel)
          std::fprintf(stderr, "%s, %s draft, %s: tokens p = %g, accepted p = %g (rate %Lg, seen %g)\n", setting_name,
                       draft_name, proposal == Proposing::argmax ? "argmax" : "sampled", p_tokens, p_accepted, rate,
                       counts.accepted[1] / 20'000);
      }
}

namespace {

/// A chain over few tokens: logits depend on the token before. Three tokens are emitted in one or more rounds.
struct Chain {
  static constexpr uint32_t kTokens = 4, kLength = 3, kCells = 64;
  SamplingParams params;
  Logits draft_shift;                ///< added to the target's logits by the draft, rotated by the row
  uint32_t block_size;
  Proposing proposal;
  std::vector<uint32_t> counts = {};  ///< with the first token, 0

  static Logits target(int32_t token) {
    Logits logits(kTokens);
    for (int i = 0; i < int(kTokens); ++i) logits[size_t(i)] = 0.5f * float((token * 5 + i * 3) % 7) - 1.0f;
    return logits;
  }

  /// Probability of every sequence, by recursion over what was emitted before.
  void enumerate_from(int32_t token, size_t cell, uint32_t depth, long double probability,
                      const std::vector<uint32_t>& seen, Distribution& out) const {
    if (depth == kLength) {
      out[cell] = probability;
      return;
    }
    const Distribution p = enumerate(Setting{target(token), params, seen});
    for (uint32_t i = 0; i < kTokens; ++i) {
      std::vector<uint32_t> next = seen;
      if (!next.empty()) ++next[i];
      enumerate_from(int32_t(i), cell * kTokens + i, depth + 1, probability * p[i], next, out);
    }
  }

  double test(uint32_t num_runs) const {
    Distribution joint(kCells);
    enumerate_from(0, 0, 0, 1.0L, counts, joint);
    const auto draft = [this](int32_t anchor, uint32_t, uint32_t row) {
      Logits logits = target(anchor);
      for (uint32_t i = 0; i < kTokens; ++i) logits[i] += draft_shift[(i + row) % kTokens];
      return logits;
    };
    const Toy toy{kTokens, [](int32_t token, uint32_t) { return target(token); }, draft};
    Start start;
    start.params = params;
    start.counts = counts;
    start.max_tokens = 1 + kLength;
    Rounds rounds(toy, start, {.mode = DraftOptions::Mode::fixed, .proposal = proposal}, block_size);
    std::vector<double> seen(kCells);
    for (uint32_t i = 0; i < num_runs; ++i) {
      RoundState& state = *rounds.state;
      state.request.sequence_id = i;
      state.position = state.num_context = 10;
      state.num_output = 1;
      state.block[0] = 0;
      rounds.output.counts = counts;
      rounds.output.tokens.clear();
      rounds.run();
      size_t cell = 0;
      for (const SampleResult& token : rounds.output.tokens) cell = cell * kTokens + size_t(token.token_id);
      ++seen[cell];
    }
    return p_value(seen, joint);
  }
};

}  // namespace

TEST_CASE("sequences: the joint distribution of three tokens, over blocks, drafts and histories") {
  const std::vector<uint32_t> history = {2, 0, 1, 0};
  const Logits shifts[] = {{0, 0, 0, 0}, {1.5f, -1, 0.5f, 0}, {-6, 6, -6, 6}};
  for (const Proposing proposal : {Proposing::argmax, Proposing::sampled})
    for (const Logits& shift : shifts)
      for (const uint32_t block_size : {2u, 3u, 4u}) {
        CHECK((Chain{sampling(1), shift, block_size, proposal}.test(30'000) > kLevel));
        CHECK((Chain{sampling(0.8f, 3, 0.95f, 0, 1.7f), shift, block_size, proposal, history}.test(30'000) > kLevel));
      }
  // Control: the history matters, and the test sees it.
  Chain wrong{sampling(1, 0, 1, 0, 1.7f), shifts[1], 4, Proposing::sampled, history};
  Distribution joint(Chain::kCells), other(Chain::kCells);
  wrong.enumerate_from(0, 0, 0, 1.0L, history, joint);
  wrong.enumerate_from(0, 0, 0, 1.0L, {1, 0, 0, 0}, other);
  std::vector<double> seen(Chain::kCells);
  for (size_t i = 0; i < seen.size(); ++i) seen[i] = std::round(double(other[i]) * 30'000);
  CHECK(p_value(seen, joint) < 1e-9);
}

namespace {

enum class Wrong { none, argmax_after_rejection, residual_keeps_q, residual_not_normalised, accepts_everything,
                   accepts_by_p_alone };

size_t draw_from(const Distribution& p, long double u) {
  for (size_t i = 0; i + 1 < p.size(); ++i)
    if ((u -= p[i]) < 0) return i;
  return p.size() - 1;
}

/// The ratio test in floating point, with one deliberate mistake.
size_t ratio_test(const Distribution& p, const Distribution& q, Wrong wrong, std::mt19937_64& generator) {
  const auto uniform = [&] { return static_cast<long double>(generator() >> 11) * 0x1p-53L; };
  const size_t d = draw_from(q, uniform());
  const long double ratio = wrong == Wrong::accepts_by_p_alone ? p[d] : p[d] / q[d];
  if (wrong == Wrong::accepts_everything || uniform() < ratio) return d;
  if (wrong == Wrong::argmax_after_rejection) return size_t(std::max_element(p.begin(), p.end()) - p.begin());
  Distribution residual = p;
  long double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    if (wrong != Wrong::residual_keeps_q) residual[i] = std::max(p[i] - q[i], 0.0L);
    sum += residual[i];
  }
  if (wrong != Wrong::residual_not_normalised)
    for (long double& r : residual) r /= sum;
  return draw_from(residual, uniform());
}

double test_ratio_test(const Setting& setting, const Logits& logits, Wrong wrong) {
  Setting draft = setting;
  draft.logits = logits;
  const Distribution p = enumerate(setting), q = enumerate(draft);
  std::mt19937_64 generator(5);
  std::vector<double> seen(kVocab);
  for (uint32_t i = 0; i < 20'000; ++i) ++seen[ratio_test(p, q, wrong, generator)];
  return p_value(seen, p);
}

}  // namespace

TEST_CASE("control: wrong ways of accepting are caught by the same test") {
  const Setting setting = settings()[0].setting;
  const Logits biased = drafts_for(setting.logits)[0].logits;
  CHECK(test_ratio_test(setting, biased, Wrong::none) > kLevel);
  for (const Wrong wrong : {Wrong::argmax_after_rejection, Wrong::residual_keeps_q, Wrong::residual_not_normalised,
                            Wrong::accepts_everything, Wrong::accepts_by_p_alone})
    CHECK(test_ratio_test(setting, biased, wrong) < 1e-9);
}

TEST_CASE("the ratio test on large vocabularies: rounding never empties a residual, ids stay in range") {
  constexpr uint32_t kLarge = 3000;
  const Logits target = random_logits(kLarge, 3, 21), other = random_logits(kLarge, 3, 22);
  Logits close = target;
  for (uint32_t i = 0; i < kLarge; ++i) close[i] += 1e-6f * float(i % 3);
  std::vector<Candidate> p_scratch(kLarge), q_scratch(kLarge);
  for (const Logits& draft : {other, close})
    for (const SamplingParams& params : {sampling(1), sampling(1, 50), sampling(0.7f, 0, 0.9f), sampling(1e-30f)}) {
      uint32_t num_accepted = 0, num_bad = 0;
      for (uint32_t i = 0; i < 400; ++i) {
        SampleRequest request{.params = &params, .sequence_id = 1, .position = i, .scratch = q_scratch.data()};
        const Proposal proposal = draw_draft({draft.data(), kLarge}, request, 1 + i % 15);
        request.scratch = p_scratch.data();
        SampleResult result;
        const bool accepted = verify_draft({target.data(), kLarge}, request, 1 + i % 15, proposal, result);
        num_accepted += accepted;
        num_bad += result.token_id < 0 || result.token_id >= int32_t(kLarge) ||
                   (accepted && result.token_id != proposal.token_id);
      }
      CHECK_EQ(num_bad, 0u);
      if (draft == close) CHECK(num_accepted > 390);
    }
}

TEST_CASE("logprobs of a verified token are those of the raw logits, accepted or not") {
  const SamplingParams raw = sampling(1);
  const Distribution p = enumerate(Setting{kTarget, raw});
  SamplingParams params = sampling(0.7f, 5, 0.9f);
  params.num_logprobs = 3;
  const Logits uniform(kVocab, 0.0f);
  std::vector<Candidate> p_scratch(kVocab), q_scratch(kVocab);
  uint32_t num_accepted = 0;
  for (uint32_t i = 0; i < 200; ++i) {
    SampleRequest request{.params = &params, .position = i, .scratch = q_scratch.data()};
    const Proposal proposal = draw_draft({uniform.data(), kVocab}, request, 1);
    request.scratch = p_scratch.data();
    SampleResult result;
    num_accepted += verify_draft({kTarget.data(), kVocab}, request, 1, proposal, result);
    CHECK(std::abs(result.logprob - double(std::log(p[size_t(result.token_id)]))) < 1e-6);
    CHECK_EQ(result.num_alternatives, 3u);
    CHECK_EQ(result.alternatives[0].token_id, 3);
  }
  CHECK(num_accepted > 20 && num_accepted < 180);
}

CHECK_MAIN()
