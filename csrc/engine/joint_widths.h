// How many drafts a step verifies that several sessions share: of all their drafts those that bring the most tokens per
// time. They make the step longer for all, also for sessions without drafts, so it becomes no longer than each may expect to
// gain by its own, or has in its budget (DraftBudget): nobody loses more than 2 % to drafts that do not bring it as much.
// Pure bookkeeping: times come from the caller.
#pragma once

#include "engine/draft_width.h"

#include <cstdint>
#include <span>
#include <vector>

namespace mimo_rt {

/// Time of a step by its rows: a line through those of late, for bytes are read once and rows are multiplied one by one.
class StepTimes {
 public:
  void add(uint32_t num_rows, double ns);
  bool is_known() const { return weight_ > 0.0; }
  /// Expected ns; 1 before the first step, of one row.
  double at(uint32_t num_rows) const;

 private:
  double row_ns() const;

  // Decayed sums: weights, rows and times, and those of squares and products of their deviations from the means.
  double weight_ = 0.0, rows_ = 0.0, ns_ = 0.0, square_ = 0.0, product_ = 0.0;
};

/// Drafts to verify of each offer, as many as `max_rows` rows have room for beside one of each session.
std::vector<uint32_t> choose_joint_widths(std::span<const DraftOffer* const> offers, uint32_t max_rows, const StepTimes& times);

}  // namespace mimo_rt
