// Which worker reads which weights in every step, as far as the plan alone decides it.
#pragma once

#include "plan/task.h"
#include "weights/page_placement.h"

#include <mimo_rt/plan.h>

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mimo_rt {

/// Refers to the plan, which must outlive it.
class WeightReaders {
 public:
  explicit WeightReaders(const Plan& plan);

  /// [num_row_groups] the worker of each row group of the slot's matrix; kNoReader: no worker, or another one in every
  /// step, as with tiles of experts that take turns among the workers.
  std::vector<uint32_t> of(const MatrixSlot& slot) const;

 private:
  struct Reader {
    uint32_t worker;
    const Task* task;
  };
  const Plan& plan_;
  std::map<std::pair<TaskKind, uint32_t>, std::vector<Reader>> tasks_;  ///< by kind and layer
};

/// For the workers of `plan` on `cores`, as they are bound: one each, or none when they are not bound. Nothing is placed
/// then, and when all cores are of one node. The plan must outlive the result. `root`: see core/memory_nodes.h.
PagePlacement placement_for(const Plan& plan, std::span<const int> cores, const std::string& root = "/");

}  // namespace mimo_rt
