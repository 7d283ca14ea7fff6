// Ids of the plan's fixed buffers; kv of layer l is kFirstKv + l. One activation arena, no pointers.
#pragma once

#include <cstdint>

namespace mimo_rt {

enum BufferId : uint16_t {
  kTokens,        // input   token ids, positions, sequences, logit rows of the step
  kX,             // arena   [max_tokens, hidden] bf16, the residual stream, updated in place
  kH,             // arena   [max_tokens, hidden] bf16, normalised rows (plans without fused norms)
  kQ,             // arena   [max_tokens, max over layers of num_q_heads * qk_head_dim] bf16
  kAttn,          // arena   [max_tokens, max over layers of num_q_heads * v_head_dim] bf16
  kRouterLogits,  // arena   [max_tokens, num_experts rounded up to 16] f32
  kRoute,         // arena   one RouteTable, see csrc/plan/route_table.h
  kAct,           // arena   [max(max_tokens * experts_per_token, max_tokens), max width] bf16
  kLogits,        // output  [max_logit_rows, vocab rounded up to 16] f32
  kSampled,       // output  [max_logit_rows]
  // Plans of a model with a draft; B: block size.
  kFeatures,      // kv      [max_tokens, captured layers * hidden] bf16, x after the captured layers, by position
  kContext,       // arena   [max_context_rows, hidden] bf16
  kContextH,      // arena   [max_context_rows, hidden] bf16, normalised (plans without fused norms)
  kContextKv,     // kv      [max_context_rows, draft layers * num_kv_heads * (qk_head_dim + v_head_dim)] bf16; a layer's
                  //         columns: K of all heads, then V of all heads
  kBlock,         // output  [1, B] token ids: the anchor, then the drafts
  kDraftX,        // arena   [B, hidden] bf16
  kDraftH,        // arena   [B, hidden] bf16, normalised (plans without fused norms)
  kDraftQ,        // arena   [B, num_q_heads * qk_head_dim] bf16
  kDraftKv,       // arena   [B, num_kv_heads * (qk_head_dim + v_head_dim)] bf16: K of all heads, then V of all heads
  kDraftAttn,     // arena   [B, num_q_heads * v_head_dim] bf16
  kDraftAct,      // arena   [B, intermediate_size] bf16
  kDraftLogits,   // arena   [B - 1, draft vocab rounded up to 16] f32
  kFirstKv,       // kv      layer 0
};

}  // namespace mimo_rt
