// What a task touches: exactly, for the largest step that its plan serves.
//
// Why the largest step is enough. Rows are tokens, logit rows or active experts; the tiles of a step with n of them are
// those tiles of the largest step whose row is below n (tile t belongs to row t / tile_end, whatever n is). So the
// accesses of a smaller step are the accesses of the largest one cut off at row n, for writers and readers alike:
// coverage, disjointness and order carry over to every n.
#pragma once

#include "plan/task.h"
#include "weights/qkv_tiles.h"

#include <mimo_rt/plan.h>

#include <memory>
#include <vector>

namespace mimo_rt {

/// What the rows of an access count. `act` has slots as rows; the slots of one active expert are contiguous and belong
/// to no other, so MoE layers account for it by active expert and dense layers by token.
enum class RowDomain : uint8_t { token, logit_row, active_expert, whole };
inline constexpr uint32_t kNumRowDomains = 4;

enum class AccessMode : uint8_t { read, write, update };  ///< update: reads, then overwrites the same region

/// Rows row_first, row_first + row_stride, … of the domain; columns [col_begin, col_end) in elements.
struct Access {
  uint16_t buffer;
  RowDomain domain;
  AccessMode mode;
  uint32_t row_first, row_stride;
  uint32_t col_begin, col_end;
};

uint32_t domain_rows(const Plan& plan, RowDomain domain);

/// Lists accesses of one plan's tasks. The step's input (tokens, positions, rows) is never written and is left out, and
/// so are KV rows of earlier steps: all earlier epochs are complete.
class AccessModel {
 public:
  explicit AccessModel(const Plan& plan);
  /// Appends to `out`. The task must have passed the structural checks of Plan::verify().
  void append(const Task& task, std::vector<Access>& out) const;

 private:
  struct Sink;
  void append_qkv(const Task& task, Sink& sink) const;
  void append_attention(const Task& task, Sink& sink) const;
  void append_expert_gate_up(const Task& task, Sink& sink) const;

  const Plan& plan_;
  std::vector<std::shared_ptr<const std::vector<QkvTile>>> qkv_tiles_;  ///< [num_layers], one for equal heads
};

/// The same for a single task.
std::vector<Access> task_accesses(const Plan& plan, const Task& task);

}  // namespace mimo_rt
