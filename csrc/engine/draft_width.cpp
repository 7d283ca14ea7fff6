#include "engine/draft_width.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace mimo_rt {
namespace {

// Time is counted in plain rounds.
constexpr double kLossRate = 0.02;    // of the time: what drafting may lose in the long run
constexpr double kLeastIncome = 0.25;  // of kLossRate, however dear context is: else such drafts were never tried again
constexpr double kGrantRate = 0.01;   // of the tokens asked for
constexpr double kMaxSaved = 10.0;    // as kMaxCredit: for streaks of others' luck

constexpr double kFirstAcceptance = 0.7;  // before anything is known
constexpr double kPriorWeight = 1.0;      // of a draft's predecessor in the estimate of its acceptance
constexpr double kDecay = 0.96;      // of acceptance counts per drafted round: half of the weight in the last 17
constexpr double kMinAlone = 8.0;     // rounds that say what rounds bring: the first ones do not draft
constexpr double kMinNarrowed = 8.0;  // plain rounds spent in narrowed ones; then their own yield decides
constexpr double kIdleDecay = 0.5;   // at most this after idle rounds: what was seen then may not hold any more
constexpr uint32_t kFirstProbeGap = 2, kMaxProbeGap = 32;   // doubled by every probe that does not pay
constexpr uint32_t kFirstPlainGap = 16, kMaxPlainGap = 256;  // doubled by every measurement
constexpr uint32_t kPlainSamples = 3;       // when one of them surprises: enough to move the median
constexpr double kSurprise = 0.2;           // relative
constexpr uint32_t kMinPlainSamples = 2;    // the first step after a prefill may be slow
constexpr uint64_t kMaxSampleAge = 64;      // rounds per sample; then neighbours know better
constexpr double kBelievable = 2.0;         // times what was expected; longer was an interruption, or will repeat
constexpr double kProbeMargin = 1.1;        // a probe must promise this much if all its drafts are accepted
constexpr uint32_t kTypicalContextRows = kMaxBlockSize;  // of a round that drafts; more say little about the next

}  // namespace

void RecentTimes::add(double ns) {
  ns_[next_] = ns;
  next_ = (next_ + 1) % kSamples;
  num_samples_ = std::min(num_samples_ + 1, kSamples);
  std::array<double, kSamples> sorted = ns_;
  const auto last = sorted.begin() + num_samples_;
  const auto middle = sorted.begin() + (num_samples_ - 1) / 2;
  std::nth_element(sorted.begin(), middle, last);
  median_ = *middle;
}

double RoundTimes::add(uint32_t num_drafts, uint32_t num_context_rows, double ns) {
  const bool has_more_context = num_context_rows > (num_drafts ? kTypicalContextRows : 0);
  if (has_more_context) {
    if (is_known(num_drafts)) {
      context_rows_.add((ns - at(num_drafts)) / num_context_rows);
      return at(num_drafts);
    }
    if (context_rows_.num_samples()) ns = std::max(ns - num_context_rows * context_row(), median(0));
  }
  ++num_rounds_;
  const double believed = num_samples(num_drafts) ? median(num_drafts) : num_samples(0) ? at(num_drafts) : ns;
  widths_[num_drafts].times.add(ns);
  widths_[num_drafts].last_round = num_rounds_;
  return std::min(median(num_drafts), kBelievable * believed);
}

double RoundTimes::context_row() const {
  return context_rows_.num_samples() ? std::max(0.0, context_rows_.median()) : 0.0;
}

bool RoundTimes::is_known(uint32_t num_drafts) const {
  const Width& width = widths_[num_drafts];
  const uint32_t num_samples = width.times.num_samples();
  return num_samples && (num_drafts == 0 || num_rounds_ - width.last_round <= num_samples * kMaxSampleAge);
}

double RoundTimes::at(uint32_t num_drafts) const {
  if (is_known(num_drafts)) return median(num_drafts);
  uint32_t below = num_drafts, above = num_drafts;
  while (below > 0 && !is_known(below)) --below;
  while (above < kMaxBlockSize && !is_known(above)) ++above;
  if (above == kMaxBlockSize) return extrapolate(num_drafts, below);
  const double slope = (median(above) - median(below)) / (above - below);
  return median(below) + slope * (num_drafts - below);
}

double RoundTimes::extrapolate(uint32_t num_drafts, uint32_t nearest) const {
  if (nearest == 0) return median(0) * (1.2 + 0.05 * num_drafts);  // a cheap draft: worth finding out
  uint32_t below = nearest - 1;
  while (below > 0 && !is_known(below)) --below;
  // Drafting at all costs about as much as one more row.
  const double num_rows = nearest - below + (below == 0 ? 1 : 0);
  const double slope = std::max(0.0, (median(nearest) - median(below)) / num_rows);
  return median(nearest) + slope * (num_drafts - nearest);
}

DraftWidth::DraftWidth(const DraftOptions& options, uint32_t block_size, DraftSource source)
    : source_(source), confidence_(source), probe_gap_(kFirstProbeGap), plain_gap_(kFirstPlainGap) {
  set_options(options, block_size);
  accepted_[0] = kFirstAcceptance;
  tried_[0] = 1.0;
}

DraftWidth::DraftWidth(const DraftOptions& options, uint32_t block_size, const DraftWidth& before) : DraftWidth(before) {
  set_options(options, block_size);
}

void DraftWidth::set_options(const DraftOptions& options, uint32_t block_size) {
  mode_ = options.mode;
  max_drafts_ = std::min(block_size, kMaxBlockSize) - 1;
  if (options.num_draft_tokens) max_drafts_ = std::min(max_drafts_, options.num_draft_tokens);
  if (mode_ == DraftOptions::Mode::off) max_drafts_ = 0;
}

void DraftWidth::begin(uint64_t max_tokens, const DraftBudget& budget) {
  stats_ = {};
  saved_ = 0.0;
  const double grant =
      std::min(kGrantRate * static_cast<double>(max_tokens), DraftBudget::kMaxGranted - budget.granted);
  budget_.credit = std::min(budget.credit + grant, DraftBudget::kMaxCredit);
  budget_.granted = budget.granted + grant;
}

double DraftWidth::tokens_per_ns() const {
  return alone_rounds_ >= kMinAlone && alone_ns_ > 0.0 ? alone_tokens_ / alone_ns_ : 0.0;
}

uint32_t DraftWidth::choose(uint32_t limit) const {
  limit = std::min(limit, max_drafts_);
  return mode_ == DraftOptions::Mode::adaptive && limit ? choose_adaptive(limit) : limit;
}

/// To know what the others are measured by.
bool DraftWidth::must_run_plain() const { return times_.num_samples(0) < kMinPlainSamples || num_plain_due_; }

uint32_t DraftWidth::choose_among(std::span<const float> scores) const {
  const uint32_t limit = std::min(static_cast<uint32_t>(scores.size()), max_drafts_);
  if (mode_ != DraftOptions::Mode::adaptive || limit == 0) return limit;
  if (must_run_plain()) return 0;
  const uint32_t best = best_width(scores.first(limit), 0);
  return best || !is_probe_due() ? best : choose_probe(limit);
}

DraftOffer DraftWidth::offer(std::span<const float> scores) const {
  const bool is_fixed = mode_ == DraftOptions::Mode::fixed;
  DraftOffer offer;
  offer.num_drafts = std::min(static_cast<uint32_t>(scores.size()), max_drafts_);
  offer.least = is_fixed ? offer.num_drafts : std::min(is_probe_due() ? 1u : 0u, offer.num_drafts);
  if (!is_fixed) offer.credit = budget_.credit + saved_;
  double all_accepted = 1.0;
  for (uint32_t i = 0; i < offer.num_drafts; ++i) offer.confirmed[i] = all_accepted *= confidence_.acceptance(scores[i]);
  return offer;
}

/// Of drafts that were refused for their scores: a gain, which makes other probes cheap, says nothing about them.
bool DraftWidth::is_probe_due() const { return num_idle_rounds_ >= std::max(probe_gap_, kFirstProbeGap); }

/// The affordable width with the most tokens per time; a probe where that is none.
uint32_t DraftWidth::choose_adaptive(uint32_t limit) const {
  if (must_run_plain()) return 0;
  uint32_t best = 0;
  double best_rate = 1.0, acceptance = accepted_[0] / tried_[0], all_accepted = 1.0, num_tokens = 1.0;
  for (uint32_t n = 1; n <= limit; ++n) {
    // What is not known about a draft is as for the one before it.
    if (n > 1) acceptance = (accepted_[n - 1] + kPriorWeight * acceptance) / (tried_[n - 1] + kPriorWeight);
    all_accepted *= acceptance;
    num_tokens += all_accepted;
    const double rate = num_tokens / cost(n);
    if (rate <= best_rate || cost(n) - 1.0 > budget_.credit) continue;
    best = n;
    best_rate = rate;
  }
  if (narrowed_spent_ >= kMinNarrowed) best = !narrowing_pays() ? 0 : std::max(best, cost(1) - 1.0 <= budget_.credit ? 1u : 0u);
  return best ? best : choose_probe(limit);
}

uint32_t DraftWidth::narrow(std::span<const float> scores) const {
  // While little is known about costs and scores, or they do not pay, no wider than by what is known about places.
  const auto num_drafts = static_cast<uint32_t>(scores.size());
  const bool is_known = narrowed_spent_ >= kMinNarrowed && narrowing_pays();
  return best_width(is_known ? scores : scores.first(std::max(1u, choose(num_drafts))), 1);
}

/// The width whose last draft still brings more tokens than its time is worth at the rate of late. `least`: the narrowest
/// that is left to choose, 0 or 1.
uint32_t DraftWidth::best_width(std::span<const float> scores, uint32_t least) const {
  const double rate = narrowing_pays() ? narrowed_tokens_ / narrowed_spent_ : 1.0;
  uint32_t best = least;
  double best_gain = least ? -HUGE_VAL : 1.0 - rate, all_accepted = 1.0, num_tokens = 1.0;
  for (uint32_t n = 1; n <= scores.size(); ++n) {
    all_accepted *= confidence_.acceptance(scores[n - 1]);
    num_tokens += all_accepted;
    const double gain = num_tokens - rate * cost(n);
    if (gain <= best_gain || (n > least && cost(n) - 1.0 > budget_.credit)) continue;
    best = n;
    best_gain = gain;
  }
  return best;
}

/// The narrowest width that would pay if all drafts were accepted, now and then.
uint32_t DraftWidth::choose_probe(uint32_t limit) const {
  if (num_idle_rounds_ < probe_gap_) return 0;
  for (uint32_t n = 1; n <= limit; ++n)
    if (n + 1.0 > kProbeMargin * cost(n)) return cost(n) - 1.0 <= budget_.credit ? n : 0;
  return 0;
}

void DraftWidth::observe(const RoundOutcome& outcome) {
  count(outcome);
  if (outcome.spent > 0.0) return observe_shared(outcome);
  if (mode_ != DraftOptions::Mode::adaptive) return;
  const bool is_surprising = is_surprise(outcome);
  const double ns = times_.add(outcome.num_drafts, outcome.num_context_rows, static_cast<double>(outcome.ns));
  for (double* sum : {&alone_rounds_, &alone_tokens_, &alone_ns_}) *sum *= kDecay;
  alone_rounds_ += 1.0;
  alone_tokens_ += 1.0 + outcome.num_accepted;
  alone_ns_ += ns;
  if (outcome.num_drafts) learn_acceptance(outcome);
  if (!outcome.scores.empty()) learn_confidence(outcome);
  if (times_.num_samples(0)) settle(outcome, ns / times_.at(0));
  if (outcome.num_drafts) {
    num_idle_rounds_ = 0;
    if (++num_drafted_rounds_ >= plain_gap_) num_plain_due_ = kPlainSamples;
  } else {
    num_idle_rounds_ += outcome.had_drafts;
    num_drafted_rounds_ = 0;
    if (num_plain_due_) measured_plain(is_surprising);
  }
}

/// What it took says nothing about a round of this session alone. Drafts of others are paid for also by who has none, and
/// with what drafts have brought it in such steps: texts of several sessions seldom repeat themselves at the same time.
void DraftWidth::observe_shared(const RoundOutcome& outcome) {
  if (mode_ == DraftOptions::Mode::fixed) return;  // whose losses are no adaptive generation's to make up for
  budget_.credit += std::exchange(saved_, 0.0);
  if (outcome.num_drafts) learn_acceptance(outcome);
  else budget_.credit -= outcome.spent - 1.0;
  learn_confidence(outcome);
  settle(outcome, outcome.spent);
  num_idle_rounds_ = outcome.num_drafts ? 0 : num_idle_rounds_ + outcome.had_drafts;
}

/// One plain round is enough to see that nothing has changed.
void DraftWidth::measured_plain(bool is_surprising) {
  const bool is_first = num_plain_due_ == kPlainSamples;
  --num_plain_due_;
  if (!is_first) return;
  plain_gap_ = is_surprising ? kFirstPlainGap : std::min(2 * plain_gap_, kMaxPlainGap);
  if (!is_surprising) num_plain_due_ = 0;
}

bool DraftWidth::is_surprise(const RoundOutcome& outcome) const {
  if (times_.num_samples(0) == 0) return false;
  const double expected = times_.at(outcome.num_drafts);
  return std::abs(static_cast<double>(outcome.ns) - expected) > kSurprise * expected;
}

void DraftWidth::learn_acceptance(const RoundOutcome& outcome) {
  if (outcome.is_cut && outcome.num_accepted == 0) return;
  const double decay = std::max(kIdleDecay, std::pow(kDecay, num_idle_rounds_ + 1.0));
  for (uint32_t i = 0; i < DraftStats::kMaxDrafts; ++i) {  // also what the options leave out at the moment
    accepted_[i] *= decay;
    tried_[i] *= decay;
  }
  confidence_.decay(decay);
  narrowed_tokens_ *= decay;
  narrowed_spent_ *= decay;
  for (uint32_t i = 0; i < outcome.num_accepted; ++i) {
    accepted_[i] += 1.0;
    tried_[i] += 1.0;
  }
  if (!outcome.is_cut && outcome.num_accepted < outcome.num_drafts) tried_[outcome.num_accepted] += 1.0;
}

void DraftWidth::learn_confidence(const RoundOutcome& outcome) {
  for (uint32_t i = 0; i < outcome.num_accepted; ++i) confidence_.observe(outcome.scores[i], true);
  if (!outcome.is_cut && outcome.num_accepted < outcome.num_drafts)
    confidence_.observe(outcome.scores[outcome.num_accepted], false);
}

/// What a round earns for the budget. One that does not draft leaves a row of context behind, to be made with many others;
/// one that does makes its few rows in the time that is measured.
double DraftWidth::income(const RoundOutcome& outcome, double spent) const {
  const double all = kLossRate * spent, context_row = times_.context_row();
  if (outcome.num_drafts || context_row == 0.0) return all;
  return std::max(all - context_row / times_.at(0), kLeastIncome * all);
}

/// `spent`: what the round cost by the estimates, not by the clock: one interrupted round shall not end drafting.
/// What is above kMaxCredit is saved by shared rounds only.
void DraftWidth::settle(const RoundOutcome& outcome, double spent) {
  budget_.credit += income(outcome, spent);
  const bool is_alone = outcome.spent == 0.0;  // of others' drafts narrowed_* say nothing
  if (is_alone && (!outcome.scores.empty() || source_ == DraftSource::ngram_lookup)) {
    if (outcome.num_drafts == 0) {  // rounds that draft decay it where they learn
      narrowed_tokens_ *= kDecay;
      narrowed_spent_ *= kDecay;
    }
    narrowed_tokens_ += 1.0 + outcome.num_accepted;
    narrowed_spent_ += spent;
  }
  if (outcome.num_drafts) {
    const double gain = 1.0 + outcome.num_accepted - spent;
    budget_.credit += gain;
    probe_gap_ = gain > 0.0 ? 0 : std::clamp(2 * probe_gap_, kFirstProbeGap, kMaxProbeGap);
  }
  const double above = std::max(budget_.credit - DraftBudget::kMaxCredit, 0.0);
  budget_.credit -= above;
  if (!is_alone) saved_ = std::min(above, kMaxSaved);
}

void DraftWidth::count(const RoundOutcome& outcome) {
  stats_before_ = stats_;
  last_num_drafts_ = outcome.num_drafts;
  ++stats_.num_rounds;
  ++stats_.width_histogram[outcome.num_drafts];
  ++stats_.accepted_histogram[outcome.num_accepted];
  if (outcome.num_drafts == 0) return;
  ++stats_.num_drafted_rounds;
  stats_.num_draft_tokens += outcome.num_proposed();
  stats_.num_accepted_tokens += outcome.num_accepted;
  for (uint32_t i = 0; i < outcome.num_proposed(); ++i) ++stats_.drafted_at_pos[i];
  for (uint32_t i = 0; i < outcome.num_accepted; ++i) ++stats_.accepted_at_pos[i];
}

void DraftWidth::cut_last(uint32_t num_accepted) {
  stats_ = stats_before_;
  count({.num_drafts = last_num_drafts_, .num_accepted = num_accepted, .is_cut = true});
}

}  // namespace mimo_rt
