// What the tasks of a DFlash draft are given; plan/task.h says what they do. For g++ and nvcc.
#pragma once

#include <cstdint>

#include "cuda/projection_params.h"
#include "cuda/step_params.h"

namespace mimo_rt::cuda {

/// What a step's tasks look up for the draft.
struct DraftTables {
  uint16_t** captured_rows = nullptr;  ///< [max_tokens] where the step's own features go, set by embed
  uint32_t* context_ids = nullptr;     ///< [num_context_rows] of the first row's FeatureRing, see list_context
  /// Where the keys and values of the rows of context go, set by context_norm.
  RowPlaces context;
  RotaryTable context_rotary;  ///< of the rows of context, set by context_norm
  RotaryTable block_rotary;    ///< of the block's rows, set by draft_embed
};

struct ContextNormParams {
  RmsNormParams norm;  ///< num_tokens: rows of context
  const StepTables* step = nullptr;
};

struct DraftEmbedParams {
  EmbedParams embed;  ///< num_tokens: rows of the block; token_ids of its step are the block
  const uint16_t* mask = nullptr;  ///< BF16 [k]: all rows but the anchor's
};

/// Where one layer's heads go, and their norms.
struct HeadLayer {
  const float* q_norm = nullptr;      ///< [qk_head_dim]; nullptr: none
  const float* k_norm = nullptr;      ///< the same
  uint16_t* const* k_rows = nullptr;  ///< [num_tokens] BF16 row of head 0
  uint16_t* const* v_rows = nullptr;  ///< the same for values
  uint32_t k_head_stride = 0, v_head_stride = 0;  ///< elements from a head's row to the next head's
};

/// What all layers have in common. Heads of a layer: those of q, of k, of v; whole row groups each.
struct HeadShape {
  uint32_t num_q_heads = 0, num_kv_heads = 0, qk_head_dim = 0, v_head_dim = 0, rotary_dim = 0;
  float norm_eps = 0.0f, value_scale = 1.0f;
  const float* cos_sin = nullptr;  ///< [num_tokens, rotary_dim]: cos, sin of pair 0, …
  RowsView<uint16_t> q;            ///< BF16 [num_tokens, num_q_heads * qk_head_dim]
  bool is_context = false;         ///< tiles are k and v heads of all layers, else all heads of one
};

/// context_kv and draft_qkv_proj: a projection whose results, FP32, become normalised, rotated or
/// scaled heads. Whole heads belong to one block.
struct HeadsParams {
  ProjectionParams projection;  ///< store f32; matrix and results have the rows of all tiles
  const HeadLayer* layers = nullptr;
  const HeadShape* shape = nullptr;
};

/// A tile is a row of the block; that of the anchor draws nothing.
struct DraftSampleParams {
  const SampleParams* sample = nullptr;  ///< row t - 1: the draft of row t
  uint32_t num_rows = 0;                 ///< of the block
};

}  // namespace mimo_rt::cuda
