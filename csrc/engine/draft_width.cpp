#include "engine/draft_width.h"

#include <algorithm>

namespace mimo_rt {

DraftWidth::DraftWidth(const DraftOptions& options, uint32_t block_size)
    : mode_(options.mode), max_drafts_(std::min(block_size, kMaxBlockSize) - 1) {
  if (options.num_draft_tokens) max_drafts_ = std::min(max_drafts_, options.num_draft_tokens);
  if (mode_ == DraftOptions::Mode::off) max_drafts_ = 0;
}

uint32_t DraftWidth::choose(uint32_t limit) { return std::min(max_drafts_, limit); }

void DraftWidth::observe(const RoundOutcome& outcome) { count(outcome); }

void DraftWidth::count(const RoundOutcome& outcome) {
  const uint32_t num_known = outcome.is_cut ? outcome.num_accepted : outcome.num_drafts;
  ++stats_.num_rounds;
  ++stats_.width_histogram[outcome.num_drafts];
  ++stats_.accepted_histogram[outcome.num_accepted];
  if (outcome.num_drafts == 0) return;
  ++stats_.num_drafted_rounds;
  stats_.num_draft_tokens += num_known;
  stats_.num_accepted_tokens += outcome.num_accepted;
  for (uint32_t i = 0; i < num_known; ++i) ++stats_.drafted_at_pos[i];
  for (uint32_t i = 0; i < outcome.num_accepted; ++i) ++stats_.accepted_at_pos[i];
}

}  // namespace mimo_rt
