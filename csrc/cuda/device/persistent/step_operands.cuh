// What of a task's operands is known when its epoch begins. The controller sets it in the task's slot, one lane.
#pragma once

#include "cuda/persistent_params.h"

namespace mimo_rt::cuda {

__device__ inline uint32_t rows_of_step(const StepTables& step, RowCount row_count) {
  switch (row_count) {
    case RowCount::fixed:
    case RowCount::tokens: return step.num_tokens;
    case RowCount::logit_rows: return step.num_logit_rows;
    case RowCount::sampled_rows: return step.num_sampled_rows;
    case RowCount::context_rows: return step.num_context_rows;
    case RowCount::draft_rows: return step.num_draft_rows;
    case RowCount::draft_logit_rows: return step.num_draft_rows != 0 ? step.num_draft_rows - 1 : 0;
  }
  return 0;
}

/// Rows that the task in the slot has in this epoch. A task without any does nothing, so those on a
/// tag edge need some: nobody would publish. They have RowCount::tokens, which is never 0.
__device__ inline void set_row_count(const PersistentParams& p, TaskOperands& operands) {
  if (operands.row_count == RowCount::fixed) return;
  const uint32_t num_rows = rows_of_step(*p.step, operands.row_count);
  *reinterpret_cast<uint32_t*>(operands.params + operands.row_count_at) = num_rows;
  if (num_rows == 0) operands.body = TaskBody::nothing;
}

/// The sequence whose context a step makes lies in any cache.
__device__ inline void set_features(const PersistentParams& p, TaskOperands& operands) {
  if (operands.reads_features)
    reinterpret_cast<ProjectionParams*>(operands.params)->x.data = p.step->kv[0].features.rows;
}

}  // namespace mimo_rt::cuda
