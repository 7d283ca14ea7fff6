// The part of a step block that the tasks of a draft work in.
#pragma once

#include <mimo_rt/plan.h>

#include <cstdint>

#include "cuda/attention_params.h"
#include "cuda/block_builder.h"
#include "cuda/kv_layout.h"
#include "weights/cuda_draft_weights.h"

namespace mimo_rt::cuda {

/// Offsets as in StepLayout; 0 without a draft, and what belongs to the block is empty in steps.
struct DraftLayout {
  /// What the host writes before a step or round.
  void add_inputs(BlockBuilder& block, const Plan& plan);
  void add_rest(BlockBuilder& block, const Plan& plan, const CudaDraftWeights& draft, const KvLayout& kv);
  /// Behind the image, see StepLayout::image_bytes.
  void add_scratch(BlockBuilder& block, const Plan& plan, const CudaDraftWeights& draft, const KvLayout& kv);

  uint64_t context_ids = 0;  ///< uint32 [max_context_rows]
  uint64_t sample = 0;       ///< SampleParams of all drafts
  // Working memory of the tasks.
  uint64_t captured_rows = 0;                     ///< pointers [max_tokens]
  uint64_t context_k_rows = 0, context_v_rows = 0;  ///< pointers [draft layers, max_context_rows]
  uint64_t context_cos_sin = 0, block_cos_sin = 0;
  uint64_t context_heads = 0, block_heads = 0;    ///< float, results of HeadsParams::projection
  // What no step changes.
  uint64_t tables = 0;                            ///< DraftTables
  uint64_t coarse = 0, fine = 0;                  ///< of the draft's RotaryTables
  uint64_t block_k_rows = 0, block_v_rows = 0;    ///< pointers [block size]
  uint64_t context_layers = 0, block_layers = 0;  ///< HeadLayer [draft layers]
  uint64_t context_shape = 0, block_shape = 0;    ///< HeadShape
  uint64_t sampled_rows = 0;                      ///< SampledRows of the drafts
  uint32_t num_head_tasks = 0;                    ///< as StepLayout's, of draft_lm_head
  // Behind the image.
  uint64_t partials = 0;                          ///< float [block size, partial_floats]
  uint32_t partial_floats = 0;
  uint64_t sample_scratch = 0;                    ///< of all drafts
};

/// One row of the block's attention in draft layer `layer_idx`, without addresses but for `device`, that of the cache.
AttentionParams draft_attention_shape(const DraftConfig& draft, const KvLayout& kv, uint32_t split_keys,
                                      uint32_t layer_idx, const uint8_t* device);

/// Positions between 0 and the last that a row of context or of a block can have, as steps of RotaryTable::coarse.
uint64_t num_coarse_positions(const KvLayout& kv);

}  // namespace mimo_rt::cuda
