// How many drafts a round should verify: the number that promises the most tokens per second, from measured round times
// and acceptance. Pure bookkeeping: times come from the caller.
#pragma once

#include <mimo_rt/draft.h>
#include <mimo_rt/stats.h>

#include <array>
#include <cstdint>

namespace mimo_rt {

class DraftWidth {
 public:
  /// `num_draft_tokens` at most: block_size - 1, or less when the options say so. Mode off: always 0.
  DraftWidth(const DraftOptions& options, uint32_t block_size);

  /// Drafts to verify in the next round, 0..max. 0: the round does not draft at all.
  uint32_t choose();
  /// A round verified `num_drafts`, accepted `num_accepted` of them and took `ns`. `is_cut`: a stop or a limit ended it
  /// early, so later drafts say nothing about acceptance.
  void observe(uint32_t num_drafts, uint32_t num_accepted, uint64_t ns, bool is_cut);
  const DraftStats& stats() const { return stats_; }
  /// Statistics of the next generation begin at zero; what was learnt about cost and acceptance stays.
  void reset_stats() { stats_ = {}; }

 private:
  DraftStats stats_;
};

}  // namespace mimo_rt
