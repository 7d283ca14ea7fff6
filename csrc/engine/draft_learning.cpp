#include "engine/draft_learning.h"

#include <algorithm>

namespace mimo_rt {

DraftLearning::Loan::Loan(DraftLearning& learning, const DraftOptions& options, uint32_t block_size, DraftSource source,
                          uint64_t max_tokens)
    : width(learning.lend(options, block_size, source, max_tokens)), learning_(learning) {}

DraftLearning::Loan::~Loan() { learning_.take_back(width); }

DraftWidth DraftLearning::lend(const DraftOptions& options, uint32_t block_size, DraftSource source, uint64_t max_tokens) {
  const std::lock_guard lock(mutex_);
  DraftWidth width = latest_ ? DraftWidth(options, block_size, *latest_) : DraftWidth(options, block_size, source);
  budget_.credit /= 2;
  width.begin(max_tokens, budget_);
  budget_.granted = width.budget().granted;
  return width;
}

void DraftLearning::take_back(const DraftWidth& width) {
  const std::lock_guard lock(mutex_);
  budget_.credit = std::min(budget_.credit + width.budget().credit, DraftBudget::kMaxCredit);
  if (width.has_learnt() && (width.has_times() || !latest_ || !latest_->has_times())) latest_ = width;
}

}  // namespace mimo_rt
