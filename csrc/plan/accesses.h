// What a task touches: exactly, for the largest step that its plan serves.
//
// Why the largest step is enough. Rows are tokens, logit rows or active experts; the tiles of a step with n of them are
// those tiles of the largest step whose row is below n (tile t belongs to row t / tile_end, whatever n is). So the
// accesses of a smaller step are the accesses of the largest one cut off at row n, for writers and readers alike:
// coverage, disjointness and order carry over to every n. Rows of context are any number, with the same argument. Rows
// of the draft are all or none. With none, `block` beyond the anchor is not written, though its row counts as whole;
// but then the round has one token (no drafts to verify), so embed and accept, its readers, do not look there either.
// With all of them and fewer tokens (a round may verify a part of the block), only readers are missing. In a plan of
// rounds without a draft `accept` alone writes `block`, all of it for the next round, and embed reads what is earlier.
//
// A step that wants no logits touches less of `logits` than is listed: each lm_head task writes some of its columns, and
// sample or accept reads these and no others. What holds of all columns holds of them.
//
// What a step reads of earlier epochs (read_earlier): all of them are complete, so the value is there; what is to be
// shown is that no task of this epoch overwrites it before or during the read.
#pragma once

#include "plan/task.h"
#include "weights/qkv_tiles.h"

#include <mimo_rt/plan.h>

#include <memory>
#include <vector>

namespace mimo_rt {

/// What the rows of an access count. `act` has slots as rows; the slots of one active expert are contiguous and belong
/// to no other, so MoE layers account for it by active expert and dense layers by token.
enum class RowDomain : uint8_t { token, logit_row, active_expert, whole, context_row, draft_row, draft_logit_row };
inline constexpr uint32_t kNumRowDomains = 7;

/// update: reads, then overwrites the same region. read_earlier: what an earlier epoch left there.
enum class AccessMode : uint8_t { read, write, update, read_earlier };

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
/// so are KV rows of earlier steps: earlier epochs are complete, and rings are long enough that a step writes other rows
/// than it needs. `features` is a ring in which the rows that context_fc reads may be those that this step captures; it
/// is listed as if they always were.
class AccessModel {
 public:
  explicit AccessModel(const Plan& plan);
  /// Appends to `out`. The task must have passed the structural checks of Plan::verify().
  void append(const Task& task, std::vector<Access>& out) const;

 private:
  struct Sink;
  void append_norm(const Task& task, RowDomain domain, Sink& sink) const;
  void append_qkv(const Task& task, Sink& sink) const;
  void append_attention(const Task& task, Sink& sink) const;
  void append_expert_gate_up(const Task& task, Sink& sink) const;
  void append_capture(const Task& task, Sink& sink) const;
  void append_draft(const Task& task, Sink& sink) const;
  void append_context_kv(const Task& task, Sink& sink) const;
  void append_draft_qkv(const Task& task, Sink& sink) const;
  void append_draft_attention(const Task& task, Sink& sink) const;
  void append_block_reads(const Task& task, Sink& sink) const;

  const Plan& plan_;
  std::vector<std::shared_ptr<const std::vector<QkvTile>>> qkv_tiles_;  ///< [num_layers], one for equal heads
};

/// The same for a single task.
std::vector<Access> task_accesses(const Plan& plan, const Task& task);

}  // namespace mimo_rt
