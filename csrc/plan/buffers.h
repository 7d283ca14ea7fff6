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
  kFirstKv,       // kv      layer 0
};

}  // namespace mimo_rt
