// The device memory that the steps of one plan work in, besides weights and the cache: one block.
#pragma once

#include <mimo_rt/plan.h>

#include <cstdint>
#include <vector>

#include "cuda/draft_layout.h"
#include "cuda/kv_layout.h"
#include "plan/task.h"
#include "weights/cuda_weights.h"

namespace mimo_rt::cuda {

/// What a plan must be for the persistent kernel: norms of their own, up to kMaxStepTokens rows of tokens and of context,
/// in rounds kMaxBlockTokens of tokens, tasks of matrices with neighbouring tiles.
/// @throws Error{unsupported_shape}
void check_device_plan(const Plan& plan);

/// Tasks of lm_head or draft_lm_head, of which the first so many workers have one each.
/// @throws Error{unsupported_shape} unless it is so
uint32_t num_head_tasks(const Plan& plan, TaskKind kind);

/// A rotary embedding that some layers of a model share.
struct RotaryKind {
  double theta;
  uint32_t rotary_dim;
  bool operator==(const RotaryKind&) const = default;
};

/// Offsets in bytes from the start of the block, multiples of 256.
struct StepLayout {
  /// The plan has passed `check_device_plan`.
  StepLayout(const Plan& plan, const CudaWeights& weights, const CudaDraftWeights* draft_weights,
             const KvLayout& cache);

  uint64_t bytes = 0;
  uint64_t image_bytes;  ///< of DevicePlan::image: what lies behind may hold anything
  uint64_t arena;        ///< the plan's activations
  uint64_t logits;       ///< float [max_logit_rows, vocab_size rounded up to 16]
  // Read by the host after a step: [results, results_end).
  uint64_t results;
  uint64_t sampled;         ///< int32 [max_logit_rows]
  uint64_t active_experts;  ///< uint32 [num_layers] how many; 0 for dense layers
  uint64_t results_end;
  uint64_t result_bytes() const { return results_end - results; }
  // Written by the host before a step: [tables, inputs_end).
  uint64_t tables;       ///< StepTables
  uint64_t token_ids, positions;  ///< [max_tokens]; rounds: token_ids are the block
  uint64_t logit_rows;   ///< [max_logit_rows]
  uint64_t sample_positions;  ///< uint32 [max_logit_rows] of the tokens to be drawn
  uint64_t sample_rows;  ///< SampleParams [max_logit_rows]; steps only
  uint64_t round;        ///< RoundTables; rounds only
  uint64_t inputs_end;
  // Working memory of the tasks.
  uint64_t k_rows, v_rows;  ///< pointers [num_layers, max_tokens]
  uint64_t arrived;         ///< uint32 [max_tokens, most kv heads of a layer, the draft's included]
  uint64_t arrived_shares;  ///< uint32 [max_logit_rows + 1] of the rows that are sampled; of accept
  // What no step changes.
  std::vector<uint64_t> qkv_tiles; ///< QkvTile of each layer
  std::vector<RotaryKind> rotary_kinds;
  std::vector<uint32_t> rotary_of_layer;  ///< into rotary_kinds
  uint64_t sampled_rows;                  ///< SampledRows of the target
  uint32_t num_head_tasks;                ///< of lm_head: parts of a row of which SampleScratch has the best
  uint64_t rotary;                        ///< RotaryTable [rotary_kinds.size()]
  std::vector<uint64_t> coarse, fine, cos_sin;  ///< of each kind
  DraftLayout draft;
  // The program.
  uint64_t tasks, worker_begin, operand_idx, operands;
  uint64_t counters, counter_totals, stop;
  std::vector<uint32_t> route_counters;  ///< [num_layers] of the tag edge with the layer's route; kNoCounter: none
  uint64_t route_rows;                   ///< TaggedWord [num_layers, 2, route_words]
  uint32_t route_words = 0;              ///< 0: no layer has a tag edge
  // Behind the image. Partial results of attention grow with the context: for 128 heads at 128 k 0.3 GB for a plan of
  // 8 rows, 2.2 GB for one of 64.
  uint64_t sample_scratch;  ///< of all rows
  uint64_t partials;        ///< float [max_tokens, partial_floats]
  uint32_t partial_floats = 0;
};

/// The stages of a plan: tasks of one have the same operands.
struct StageList {
  explicit StageList(const Plan& plan);

  std::vector<const Task*> first;   ///< a task of each stage
  std::vector<uint32_t> stage_idx;  ///< of every task, worker after worker
};

/// One row of attention in a layer, without addresses but for those of `view`.
AttentionParams attention_shape(const LayerConfig& layer, const KvView& view, uint32_t split_keys,
                                uint32_t max_context);

/// Partial results of such a row, a multiple of 4: rows of them are 16-byte aligned. @throws Error{capacity}
uint32_t row_partial_floats(const AttentionParams& row);

}  // namespace mimo_rt::cuda
