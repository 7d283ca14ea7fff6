// What the generations of an engine learn about drafting, and the budget that they share.
#pragma once

#include "engine/draft_width.h"

#include <mutex>
#include <optional>

namespace mimo_rt {

/// Thread-safe. Generations may overlap: each goes on from what the last one that ended had learnt. The budget exists
/// once: a generation borrows half of what is there, so that another one can begin, and brings back what is left.
class DraftLearning {
 public:
  /// One generation's share.
  class Loan {
   public:
    /// `max_tokens`: see DraftWidth::begin.
    Loan(DraftLearning& learning, const DraftOptions& options, uint32_t block_size, DraftSource source,
         uint64_t max_tokens);
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    ~Loan();

    DraftWidth width;

   private:
    DraftLearning& learning_;
  };

 private:
  DraftWidth lend(const DraftOptions& options, uint32_t block_size, DraftSource source, uint64_t max_tokens);
  void take_back(const DraftWidth& width);

  std::mutex mutex_;
  std::optional<DraftWidth> latest_;
  DraftBudget budget_;
};

}  // namespace mimo_rt
