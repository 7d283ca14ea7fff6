// The plans of an executor with the memory that their steps run in: as given, and for fewer workers once they are asked for.
#pragma once

#include "cpu/ops_context.h"

#include <memory>
#include <vector>

namespace mimo_rt::cpu {

class PlanStates {
 public:
  /// @throws Error{out_of_memory}
  PlanStates(const std::vector<const Plan*>& plans, const ModelConfig& config, const DraftConfig* draft);

  /// Of the plan as it was given.
  /// @throws Error{invalid_argument} for any other plan
  PlanState& whole(const Plan& plan);
  /// The same steps for fewer workers, planned and proved when first asked for; nullptr: there is no memory for them.
  PlanState* smaller(const Plan& plan, uint32_t num_workers);
  /// Whichever of them was asked for last.
  const PlanState& latest(const Plan& plan) const { return *latest_[index_of(plan)]; }
  const std::vector<std::unique_ptr<PlanState>>& all_whole() const { return whole_; }

 private:
  size_t index_of(const Plan& plan) const;

  const ModelConfig& config_;
  const DraftConfig* draft_;
  std::vector<std::unique_ptr<PlanState>> whole_;
  std::vector<std::vector<std::unique_ptr<PlanState>>> smaller_;  ///< [plan][num_workers - 1]
  std::vector<PlanState*> latest_;                                ///< [plan]
};

}  // namespace mimo_rt::cpu
