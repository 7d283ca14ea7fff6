// How many drafts a round should verify: the number that promises the most tokens per second, from measured round times
// and acceptance. Pure bookkeeping: times come from the caller.
//
// With a draft model twice per round: `choose` before it, from the acceptance of each place in the block, says whether it
// drafts at all; `narrow`, once the drafts are there, from their scores (DraftConfidence), how many of them are worth
// verifying. Where nobody knows the scores (rounds on a GPU), the first choice stands. Drafts that cost nothing to make are
// there before the round: `choose_among` decides once, from their scores; a GPU, which looks them up by itself, is told
// beforehand what that would be for every length of a match.
//
// Adaptive widths are chosen by expected tokens / time, under a budget: drafting may lose 2 % of the time against plain
// decoding, kMaxCredit plain rounds at most at once, and in advance, before anything is known, 1 % of the tokens asked for
// (kMaxGranted plain rounds in all). The context that rounds without drafts make for later ones is paid from the same 2 %,
// as long as it leaves a quarter of them. What drafting gains fills the budget up again; in steps that sessions share it may
// become twice as large, since drafts of others are paid from it as well. So a draft that is useless, or becomes
// useless, or alternates, cannot cost more, whatever the estimates say; but where that context alone takes more than 1.5 %
// of the time, it costs the context and one percent.
#pragma once

#include "engine/draft_confidence.h"
#include "engine/round_sharing.h"

#include <mimo_rt/draft.h>
#include <mimo_rt/stats.h>

#include <array>
#include <cstdint>
#include <span>

namespace mimo_rt {

/// What happened in a round.
struct RoundOutcome {
  uint32_t num_drafts = 0;        ///< verified
  uint32_t num_accepted = 0;      ///< of them; emitted tokens - 1
  uint32_t num_context_rows = 0;  ///< of draft context that the round made
  uint64_t ns = 0;
  bool is_cut = false;            ///< a stop ended it early: drafts beyond num_accepted say nothing
  std::span<const float> scores = {};  ///< of the drafts, when num_drafts was chosen by scores; else empty
  bool had_drafts = true;         ///< false: there was nothing to verify, so that num_drafts = 0 says nothing
  double spent = 0.0;             ///< what it cost in plain rounds, drafts of others included; 0: it was not shared

  uint32_t num_proposed() const { return is_cut ? num_accepted : num_drafts; }  ///< as DraftStats counts
};

/// Drafts of one session for a step that others share: how many of them it verifies depends on all of theirs.
struct DraftOffer {
  uint32_t num_drafts = 0;
  uint32_t least = 0;     ///< verified whatever they promise, as far as others can pay for it
  double credit = 1e9;    ///< plain rounds by which the step may become longer, beyond what its drafts promise
  std::array<double, kMaxBlockSize> confirmed{};  ///< [num_drafts] how likely draft i + 1 and all before it are right
};

/// The last few of some measurements.
class RecentTimes {
 public:
  void add(double ns);
  uint32_t num_samples() const { return num_samples_; }
  /// The lower one of two: disturbances only ever make a round longer.
  double median() const { return median_; }

 private:
  static constexpr uint32_t kSamples = 5;
  std::array<double, kSamples> ns_{};
  double median_ = 0.0;
  uint32_t num_samples_ = 0;  ///< at most kSamples
  uint32_t next_ = 0;
};

/// Measured round times per width: medians of the last few, so that an interrupted round does no harm.
class RoundTimes {
 public:
  /// Returns what to believe that the round cost, but for much context that it made for others.
  double add(uint32_t num_drafts, uint32_t num_context_rows, double ns);
  uint32_t num_samples(uint32_t num_drafts) const { return widths_[num_drafts].times.num_samples(); }
  bool is_known(uint32_t num_drafts) const;  ///< measured, and not too long ago
  /// Expected ns. Widths never or long not measured: by their neighbours, affine. Needs a sample of width 0.
  double at(uint32_t num_drafts) const;
  double context_row() const;  ///< ns by which a row of much context prolongs its round; 0: not known

 private:
  struct Width {
    RecentTimes times;
    uint64_t last_round = 0;
  };
  double median(uint32_t num_drafts) const { return widths_[num_drafts].times.median(); }
  double extrapolate(uint32_t num_drafts, uint32_t nearest) const;

  std::array<Width, kMaxBlockSize> widths_;
  RecentTimes context_rows_;  ///< per row
  uint64_t num_rounds_ = 0;
};

/// What drafting may lose, in plain rounds.
struct DraftBudget {
  static constexpr double kMaxCredit = 10.0;  ///< for streaks of bad luck; also what a sudden change may cost
  static constexpr double kMaxGranted = 4.0;
  double credit = 0.0;
  double granted = 0.0;  ///< so far in advance, to find out what an unknown draft is worth
};

class DraftWidth {
 public:
  /// `num_draft_tokens` at most: block_size - 1, or less when the options say so. Mode off: always 0.
  DraftWidth(const DraftOptions& options, uint32_t block_size, DraftSource source = DraftSource::model);
  /// With what `before` has learnt about cost and acceptance of the same drafts.
  DraftWidth(const DraftOptions& options, uint32_t block_size, const DraftWidth& before);

  /// A generation begins: its statistics begin at zero, what was learnt stays. `max_tokens`: that it may emit, for
  /// which `budget` grows if not all has been granted.
  void begin(uint64_t max_tokens, const DraftBudget& budget);
  const DraftBudget& budget() const { return budget_; }
  /// Whether rounds of this generation have taught it anything.
  bool has_learnt() const { return mode_ == DraftOptions::Mode::adaptive && stats_.num_rounds != 0; }
  /// Whether it knows times: of rounds that were not shared.
  bool has_times() const { return times_.num_samples(0) != 0; }
  /// Tokens per ns that rounds bring which are not shared; 0: too few were measured.
  double tokens_per_ns() const;
  /// Of an adaptive generation: whether its next round is one that others share; see RoundSharing.
  bool shares_round(uint32_t num_sharing, double step_ns) { return sharing_.shares(num_sharing, tokens_per_ns(), step_ns); }

  /// Drafts to verify in the next round, 0..min(max, limit). 0: the round does not draft at all.
  uint32_t choose(uint32_t limit) const;
  /// Whether rounds that draft should ask `narrow`; they then draft max_drafts().
  bool narrows() const { return mode_ == DraftOptions::Mode::adaptive; }
  uint32_t max_drafts() const { return max_drafts_; }
  /// Of the drafts with these scores (see DraftConfidence), how many to verify: 1..scores.size(). Only in a round for
  /// which `choose` was not 0.
  uint32_t narrow(std::span<const float> scores) const;
  /// With DraftSource::ngram_lookup, instead of the above: of the drafts with these scores, which are there already, how
  /// many to verify: 0..min(max, scores.size()).
  uint32_t choose_among(std::span<const float> scores) const;
  /// The same for a step that others share.
  DraftOffer offer(std::span<const float> scores) const;
  void observe(const RoundOutcome& outcome);
  /// In statistics, the round observed last was cut behind so many accepted drafts, by who reads the tokens: what was
  /// learnt from the others stays.
  void cut_last(uint32_t num_accepted);
  const DraftStats& stats() const { return stats_; }

 private:
  void set_options(const DraftOptions& options, uint32_t block_size);
  uint32_t choose_adaptive(uint32_t limit) const;
  uint32_t choose_probe(uint32_t limit) const;
  uint32_t best_width(std::span<const float> scores, uint32_t least) const;
  bool must_run_plain() const;
  void count(const RoundOutcome& outcome);
  void observe_shared(const RoundOutcome& outcome);
  bool is_probe_due() const;
  void measured_plain(bool is_surprising);
  bool is_surprise(const RoundOutcome& outcome) const;
  void learn_acceptance(const RoundOutcome& outcome);
  void learn_confidence(const RoundOutcome& outcome);
  double income(const RoundOutcome& outcome, double spent) const;
  void settle(const RoundOutcome& outcome, double spent);
  bool narrowing_pays() const { return narrowed_tokens_ > narrowed_spent_; }
  double cost(uint32_t num_drafts) const { return times_.at(num_drafts) / times_.at(0); }

  DraftStats stats_, stats_before_;  ///< with and without the last round
  uint32_t last_num_drafts_ = 0;
  DraftOptions::Mode mode_;
  DraftSource source_;
  uint32_t max_drafts_;
  RoundTimes times_;
  /// Decayed counts for draft i + 1, given that those before were accepted.
  std::array<double, DraftStats::kMaxDrafts> accepted_{}, tried_{};
  DraftConfidence confidence_;
  /// Decayed sums over narrowed rounds, of a lookup over all: tokens emitted, and their cost in plain rounds.
  double narrowed_tokens_ = 0.0, narrowed_spent_ = 0.0;
  double alone_rounds_ = 0.0, alone_tokens_ = 0.0, alone_ns_ = 0.0;  ///< decayed sums over rounds that were not shared
  RoundSharing sharing_;           ///< goes on from one generation to the next: short ones would never look again
  DraftBudget budget_;
  double saved_ = 0.0;             ///< gains of shared steps above kMaxCredit, for others like them: at most kMaxSaved
  uint32_t num_idle_rounds_ = 0;   ///< since the last that drafted
  uint32_t probe_gap_;             ///< idle rounds before a probe
  uint32_t num_drafted_rounds_ = 0;  ///< since the last that did not draft
  uint32_t plain_gap_;             ///< drafted rounds before a plain one, which measures the alternative
  uint32_t num_plain_due_ = 0;     ///< plain rounds to come for that
};

}  // namespace mimo_rt
