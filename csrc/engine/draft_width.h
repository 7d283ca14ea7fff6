// How many drafts a round should verify: the number that promises the most tokens per second, from measured round times
// and acceptance. Pure bookkeeping: times come from the caller.
#pragma once

#include <mimo_rt/draft.h>
#include <mimo_rt/stats.h>

#include <array>
#include <cstdint>

namespace mimo_rt {

/// What happened in a round.
struct RoundOutcome {
  uint32_t num_drafts = 0;        ///< verified
  uint32_t num_accepted = 0;      ///< of them; emitted tokens - 1
  uint32_t num_context_rows = 0;  ///< of draft context that the round made
  uint64_t ns = 0;
  bool is_cut = false;            ///< a stop ended it early: drafts beyond num_accepted say nothing
};

class DraftWidth {
 public:
  /// `num_draft_tokens` at most: block_size - 1, or less when the options say so. Mode off: always 0.
  DraftWidth(const DraftOptions& options, uint32_t block_size);

  /// Drafts to verify in the next round, 0..min(max, limit). 0: the round does not draft at all.
  uint32_t choose(uint32_t limit);
  void observe(const RoundOutcome& outcome);
  const DraftStats& stats() const { return stats_; }
  /// Statistics of the next generation begin at zero; what was learnt about cost and acceptance stays.
  void reset_stats() { stats_ = {}; }

 private:
  void count(const RoundOutcome& outcome);

  DraftStats stats_;
  DraftOptions::Mode mode_;
  uint32_t max_drafts_;
};

}  // namespace mimo_rt
