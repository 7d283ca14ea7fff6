// The task record shared by planner, verifier and every executor (g++ and nvcc alike). POD, 64 bytes, no pointers.
//
// Adding a task kind touches: the line below, csrc/plan/kinds.cpp and accesses.cpp, the planner, the ref op, the CPU op,
// and the operands of the CUDA kernels (csrc/cuda/device_operands.h). A test fails when a kind lacks one of them.
#pragma once

#include <cstdint>
#include <type_traits>

namespace mimo_rt {

// name, trip count. One task covers tiles t = tile_first, tile_first + tile_stride, … < tile_end * count, where count is
// 1 (once), StepInput::num_tokens (per_token), the number of active experts (per_active_expert),
// StepInput::num_context_rows (per_context_row), or StepInput::num_draft_rows (per_draft_row): the block size in a round
// that drafts, else 0.
//
//   embed           per_token  x[t] = E[token_ids[t]]                                   tile: one token
//   rms_norm        per_token  h[t] = rms_norm(x[t]); norm: see kMlpNorm, kNoLayer      tile: one token
//   qkv_proj        once       q, KV cache <- W_qkv h (RoPE, value scale)               tile: 16 packed rows
//   attention       per_token  attn[t, heads of c] = softmax(q k) v                     tile: share c of a token, see below
//   o_proj          once       x += W_o attn                                            tile: 16 rows
//   router          once       router_logits = W_r h                                    tile: 16 rows
//   select_experts  once       route <- sigmoid, bias, top-k, ascending active list     tile: the whole step
//   expert_gate_up  per_active_expert  act[slot] = silu(W_g h) * (W_u h)                tile: a share of one expert, see below
//   expert_down     once       x += sum over active experts, ascending, of w_e W_d act  tile: 16 rows
//   gate_up_proj    once       act = silu(W_g h) * (W_u h)  (dense)                     tile: 16 columns of act
//   down_proj       once       x += W_d act  (dense)                                    tile: 16 rows
//   lm_head         once       logits[r] = W_lm h[logit_rows[r]]                        tile: 16 rows
//                              (in a step that wants only tokens, the executor may keep the best of them instead; what it
//                              knows of a row's tokens, the block's among them, embed has read before)
//   sample          once       sampled[r] <- logits[r], sampling parameters             tile: a share of the step, see below
//
// Steps of a model with a draft begin with the context of rows not yet in the draft's KV cache (num_context_rows of them,
// 0 included); `layer_idx` of a draft_* kind counts the draft's layers:
//
//   context_fc          once             context[r] = W_fc features[context_begin + r]              tile: 16 rows
//   context_norm        per_context_row  context_h[r] = rms_norm(context[r])                        tile: one row
//   context_kv          once             draft KV cache <- W_k u, W_v u, u = context_h              tile: see below
//
// A round (draft a block, verify it, accept) has `accept` instead of `sample` and, with a draft, these before the target's
// tasks. Without one, accept fills the whole block of the next round:
//
//   draft_embed         per_draft_row  draft_x[t] = E[block[0]] for t = 0, else the mask embedding  tile: one row
//   draft_norm          per_draft_row  draft_h[t] = rms_norm(draft_x[t]); norm: see kMlpNorm, kNoLayer  tile: one row
//   draft_qkv_proj      once           draft_q, draft_kv <- W_qkv draft_h (q/k norm, RoPE, value scale)
//                                                                       tile: one head: q heads, k heads, v heads
//   draft_attention     per_draft_row  draft_attn[t, heads of c], context and block visible         tile: as of attention
//   draft_o_proj        once           draft_x += W_o draft_attn                                    tile: 16 rows
//   draft_gate_up_proj  once           draft_act = silu(W_g draft_h) * (W_u draft_h)                tile: 16 columns
//   draft_down_proj     once           draft_x += W_d draft_act                                     tile: 16 rows
//   draft_lm_head       once           draft_logits[t - 1] = W_lm draft_h[t], t >= 1                tile: 16 rows
//   draft_sample        per_draft_row  block[t] <- draft_logits[t - 1]; nothing for t = 0           tile: one row
//   accept              once           tokens out, the next round's block[0 ..] and rows <- logits, block, draft_logits
//                                                                                       tile: a share of the round
//
// Tile t of context_kv is one kv head's keys or values in one draft layer: t = (layer * 2 + is_v) * num_kv_heads + head.
//
// Tile t of attention and draft_attention is share c = t % tile_end of token t / tile_end: of its H q heads
// [share_begin(c, tile_end, H), share_begin(c + 1, tile_end, H)). With PlanOptions::attention_split_keys these are a kv
// head's, or tile_end is a multiple of the kv heads and the shares of one do its keys together: the last to be done writes
// all of its q heads. Whoever reads attn reads whole rows, so it waits for all shares either way.
//
// Tile t of sample and accept is share t of tile_end, and a task has one. They read the logits together (how they divide
// them is the executor's business), and what is written the last to be done writes. Executors that do all in one go do it
// in share 0, so that is where Plan::verify() takes it to be. With one share (all but PlanOptions::sample_by_all) it is so.
//
// Tile t of expert_gate_up is active expert t / tile_end and share c = t % tile_end of its P = ceil(width / 16) pairs of
// row groups (16 gate rows, 16 up rows, 16 columns of act): [share_begin(c, tile_end, P), share_begin(c + 1, tile_end, P)).
#define MIMO_RT_TASK_KINDS(X)          \
  X(embed, per_token)                  \
  X(rms_norm, per_token)               \
  X(qkv_proj, once)                    \
  X(attention, per_token)              \
  X(o_proj, once)                      \
  X(router, once)                      \
  X(select_experts, once)              \
  X(expert_gate_up, per_active_expert) \
  X(expert_down, once)                 \
  X(gate_up_proj, once)                \
  X(down_proj, once)                   \
  X(lm_head, once)                     \
  X(sample, once)                      \
  X(context_fc, once)                  \
  X(context_norm, per_context_row)     \
  X(context_kv, once)                  \
  X(draft_embed, per_draft_row)        \
  X(draft_norm, per_draft_row)         \
  X(draft_qkv_proj, once)              \
  X(draft_attention, per_draft_row)    \
  X(draft_o_proj, once)                \
  X(draft_gate_up_proj, once)          \
  X(draft_down_proj, once)             \
  X(draft_lm_head, once)               \
  X(draft_sample, per_draft_row)       \
  X(accept, once)

enum class TaskKind : uint16_t {
#define MIMO_RT_X(name, trip) name,
  MIMO_RT_TASK_KINDS(MIMO_RT_X)
#undef MIMO_RT_X
};

enum class TripCount : uint8_t { once, per_token, per_active_expert, per_context_row, per_draft_row };

inline constexpr uint32_t kNoCounter = 0xffffffffu;
inline constexpr uint16_t kNoBuffer = 0xffffu;
inline constexpr uint16_t kNoLayer = 0xffffu;

// Task::flags
inline constexpr uint16_t kFusedNorm = 1;  // `input` is x (context, draft_x): normalise all rows privately first; else it is h
inline constexpr uint16_t kMlpNorm = 2;    // rms_norm, draft_norm: the norm before the MLP, not the one before attention
inline constexpr uint16_t kCapture = 4;    // down_proj, expert_down: x after this layer also goes to `output2`, features
inline constexpr uint16_t kFromBlock = 8;  // embed only: the tokens are the round's block, not the step's input

/// Passes when counters[counter] >= epoch * total(counter) + value. `value` 0 waits for all of the previous epochs.
struct Wait {
  uint32_t counter;
  uint32_t value;
};

struct alignas(64) Task {
  TaskKind kind;
  uint16_t layer_idx;     // kNoLayer for embed, lm_head, sample and the final norm
  uint16_t flags;
  uint16_t num_waits;     // 0..2
  uint32_t tile_first;
  uint32_t tile_stride;   // >= 1
  uint32_t tile_end;      // tiles per count, see TripCount
  uint16_t input;         // buffer ids; meaning per kind, see kinds.h
  uint16_t input2;
  uint16_t output;
  uint16_t output2;
  Wait waits[2];
  uint32_t signal_counter;  // += 1 when all writes of this task are visible; kNoCounter: none
  uint32_t cost_ns;         // the planner's estimate, for balance and traces
  uint32_t reserved[3];     // zero; no padding, so that tasks can be hashed as bytes
};
static_assert(sizeof(Task) == 64 && std::has_unique_object_representations_v<Task>);

constexpr TripCount trip_count(TaskKind kind) {
  constexpr TripCount kTrips[] = {
#define MIMO_RT_X(name, trip) TripCount::trip,
      MIMO_RT_TASK_KINDS(MIMO_RT_X)
#undef MIMO_RT_X
  };
  return kTrips[static_cast<uint16_t>(kind)];
}

constexpr const char* task_kind_name(TaskKind kind) {
  constexpr const char* kNames[] = {
#define MIMO_RT_X(name, trip) #name,
      MIMO_RT_TASK_KINDS(MIMO_RT_X)
#undef MIMO_RT_X
  };
  return kNames[static_cast<uint16_t>(kind)];
}

inline constexpr uint16_t kNumTaskKinds = static_cast<uint16_t>(TaskKind::accept) + 1;

/// Shares of an uneven split: part i of `parts` covers [share_begin(i), share_begin(i + 1)).
#if defined(__CUDACC__)
__host__ __device__
#endif
constexpr uint32_t share_begin(uint32_t part, uint32_t parts, uint32_t total) {
  return static_cast<uint32_t>(uint64_t{part} * total / parts);
}

}  // namespace mimo_rt
