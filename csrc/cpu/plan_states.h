// The plans of an executor with the memory that their steps run in: as given, and for fewer workers once they are asked
// for.
#pragma once

#include "core/owner_process.h"
#include "cpu/ops_context.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

namespace mimo_rt::cpu {

class PlanStates {
 public:
  /// @throws Error{out_of_memory}
  PlanStates(const std::vector<const Plan*>& plans, const ModelConfig& config, const DraftConfig* draft);
  ~PlanStates();
  PlanStates(const PlanStates&) = delete;
  PlanStates& operator=(const PlanStates&) = delete;

  /// Of the plan as it was given.
  /// @throws Error{invalid_argument} for any other plan
  PlanState& whole(const Plan& plan) const { return *whole_[index_of(plan)]; }
  /// The same steps for fewer workers, in the same buffers; nullptr: not yet, or never. A thread plans and proves them when
  /// they are first asked for, which takes up to a second for large models and many workers.
  PlanState* smaller(const Plan& plan, uint32_t num_workers);
  /// Whether some that were asked for will never be there.
  bool has_failed() const { return has_failed_.load(std::memory_order_relaxed); }
  const std::vector<std::unique_ptr<PlanState>>& all_whole() const { return whole_; }

 private:
  struct Smaller {
    bool was_asked = false;
    std::thread maker;
    std::unique_ptr<PlanState> state;  ///< the maker's until is_there
    std::atomic<bool> is_there{false};
  };
  size_t index_of(const Plan& plan) const;
  std::unique_ptr<PlanState> make_smaller(const PlanState& whole, uint32_t num_workers) const noexcept;

  const ModelConfig& config_;
  const DraftConfig* draft_;
  std::vector<std::unique_ptr<PlanState>> whole_;
  std::vector<std::vector<std::unique_ptr<Smaller>>> smaller_;  ///< [plan][num_workers - 1]
  std::atomic<bool> has_failed_{false};
  OwnerProcess owner_;                                         ///< of the makers
};

}  // namespace mimo_rt::cpu
