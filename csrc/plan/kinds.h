// What each task kind means to the planner and the verifier: its buffers, its tiles and where its inputs come from.
#pragma once

#include "plan/task.h"

#include <mimo_rt/plan.h>

#include <string>

namespace mimo_rt {

/// Where in a model a kind may stand. step: steps only; context: steps and rounds of a model with a draft; round:
/// rounds only; draft_layer: a layer of the draft, draft_norm: that or its end, in rounds only.
enum class Scope : uint8_t {
  model, any_layer, moe_layer, dense_layer, norm, step, context, round, draft_layer, draft_norm
};

Scope scope_of(TaskKind kind);

/// Whether the kind reads normalised rows: `h`, or `x` with kFusedNorm; the draft's kinds: those of context or block.
bool takes_norm(TaskKind kind);

/// Whether the kind is a norm that layers have two of, see kMlpNorm.
bool chooses_norm(TaskKind kind);

/// The position of a layer in `target_layer_ids`, or -1: its output is not captured.
int32_t capture_index(const PlanShape& shape, uint16_t layer_idx);

/// First column of draft layer `layer_idx` in `context_kv`; its columns: K of all heads, then V of all heads.
uint32_t context_kv_begin(const PlanShape::Draft& draft, uint32_t layer_idx);

/// The buffer ids that a task's fields must hold; kNoBuffer where the kind has none. draft_attention also reads
/// kContextKv, for which it has no field.
struct TaskFields {
  uint16_t input, input2, output, output2;
  bool operator==(const TaskFields&) const = default;
};
TaskFields expected_fields(const Task& task);

/// A point in the data flow of a step: all tasks of one op of one layer. Their outputs together are one value.
struct Stage {
  TaskKind kind = TaskKind::embed;
  uint16_t layer_idx = kNoLayer;
  bool mlp_norm = false;
  bool operator==(const Stage&) const = default;
};
Stage stage_of(const Task& task);
std::string stage_name(const Stage& stage);  ///< "layer 3 o_proj"

/// The stage that must have written what `task` reads from `buffer`. This table is the model's data flow.
Stage source_stage(const PlanShape& shape, const Task& task, uint16_t buffer);

/// Whether the tasks of a phase are shares that count each other, so that all of them must be there.
inline bool counts_shares(TaskKind kind) { return kind == TaskKind::sample || kind == TaskKind::accept; }

/// Distinct experts that a step can have at most.
uint32_t max_active_experts(const PlanShape& shape, uint32_t max_tokens);

/// Tiles of a kind per unit of its trip count; for expert_gate_up: the most that one expert can be cut into.
uint32_t num_tiles(const PlanShape& shape, TaskKind kind, uint16_t layer_idx);

/// The attention geometry of a layer, as `qkv_tiles` wants it.
LayerConfig layer_config(const PlanShape::Layer& layer);

/// "worker 3 task 12 (o_proj, layer 2)"
std::string task_name(const Plan& plan, uint32_t worker_idx, uint32_t task_idx);

}  // namespace mimo_rt
