// A layer of the draft as those see it who handle layers of any model: its heads, and how far it looks back.
#pragma once

#include <mimo_rt/config.h>
#include <mimo_rt/draft.h>

namespace mimo_rt {

inline LayerConfig draft_layer(const DraftConfig& draft, uint32_t layer_idx) {
  LayerConfig layer;
  layer.has_sink = draft.has_sink;
  layer.window_tokens = draft.window_tokens[layer_idx];
  layer.num_q_heads = draft.num_q_heads;
  layer.num_kv_heads = draft.num_kv_heads;
  layer.qk_head_dim = draft.qk_head_dim;
  layer.v_head_dim = draft.v_head_dim;
  layer.rotary_dim = draft.rotary_dim;
  return layer;
}

}  // namespace mimo_rt
