// Attention of a step's rows, a kv head of a row at a time: the attention task with one row, and
// the combination of its splits. The bits are those of a call with more rows of the same sequence
// (tasks/attention.cuh).
//
// The shares of a kv head divide the splits among them. Each counts itself in when its partial
// results are there, and the one that comes last combines them all, in the same order whoever that
// is: no block waits for another, and a row with one split, as most are, counts nothing.
#pragma once

#include "cuda/device/tasks/attention_combine.cuh"
#include "cuda/device/tasks/last_share.cuh"
#include "cuda/step_params.h"
#include "plan/task.h"

namespace mimo_rt::cuda {

struct AttendRowsShared {
  AttentionShared attention;
  // The call of the row at hand. In shared memory: the products need the registers.
  AttentionParams load_call, compute_call;
  uint32_t is_last;  ///< this block combines
};

/// What a share does of its kv head's splits.
struct AttendedShare {
  uint32_t kv_head, num_parts;  ///< shares that have anything to do
  UnitRange units;              ///< of AttentionCall

  /// `share` of `num_shares` of the row.
  __device__ AttendedShare(const AttentionParams& call, uint32_t share, uint32_t num_shares) {
    const uint32_t per_head = num_shares / call.num_kv_heads, part = share % per_head;
    const uint32_t num_splits = AttentionCall(call).num_splits;
    kv_head = share / per_head;
    num_parts = per_head < num_splits ? per_head : num_splits;
    units = {kv_head, call.num_kv_heads, 0};
    if (part >= num_parts) return;
    units.first += share_begin(part, num_parts, num_splits) * call.num_kv_heads;
    units.end = share_begin(part + 1, num_parts, num_splits) * call.num_kv_heads;
  }
};

/// One warp, by words: a thread has no registers for all of them.
__device__ inline void set_call_of_row(AttentionParams& call, const AttendRowsParams& p,
                                       uint32_t token) {
  static_assert(sizeof(AttentionParams) % 4 == 0);
  const auto* from = reinterpret_cast<const uint32_t*>(&p.call);
  for (uint32_t i = threadIdx.x % 32; i < sizeof(AttentionParams) / 4; i += 32)
    reinterpret_cast<uint32_t*>(&call)[i] = from[i];
  ptx::sync_warp();
  if (threadIdx.x % 32 != 0) return;
  const bool is_block = p.call.block.blocks != nullptr;
  call.q.data = p.call.q.row(token);
  call.out.data = p.call.out.row(token);
  call.position = p.step->positions + (is_block ? 0 : token);
  call.first_row = is_block ? token : 0;
  call.partials += uint64_t{token} * p.partial_floats;
  call.kv = p.step->kv[is_block ? 0 : token].layers[p.layer_idx];
}

/// Tickets up to the next that a chunk may begin with.
__device__ __forceinline__ uint32_t num_padding_tickets(uint32_t ticket) {
  return (0 - ticket) % kChunkTickets;
}

// The tiles of `task` are read again for each: the products need the registers.

__device__ __forceinline__ void load_attended_rows(AttendRowsShared& shared,
                                                   const AttendRowsParams& p, const Task& task,
                                                   uint32_t& ticket) {
  const uint32_t lane_idx = threadIdx.x % 32, num_padding = num_padding_tickets(ticket);
  if (lane_idx < num_padding) shared.attention.ring.fill(ticket + lane_idx, nullptr, 0, 0);
  ticket += num_padding;
  for (uint32_t t = task.tile_first; t < p.num_tokens * task.tile_end; t += task.tile_stride) {
    ptx::sync_warp();  // all lanes are done with the call before
    set_call_of_row(shared.load_call, p, t / task.tile_end);
    ptx::sync_warp();
    const AttendedShare share(shared.load_call, t % task.tile_end, task.tile_end);
    load_attention(shared.attention, shared.load_call, share.units, ticket);
  }
}

/// All compute warps, after a barrier behind the share's partial results: whether those of the other
/// shares are there, too, and nobody else has seen that.
__device__ __forceinline__ bool combines_splits(AttendRowsShared& shared, const AttendRowsParams& p,
                                                const AttendedShare& share, uint32_t token) {
  if (share.units.end == 0) return false;
  return comes_last(shared.is_last, p.step->arrived + token * p.call.num_kv_heads + share.kv_head, share.num_parts - 1);
}

__device__ __forceinline__ void compute_attended_rows(AttendRowsShared& shared,
                                                      const AttendRowsParams& p, const Task& task,
                                                      uint32_t& ticket) {
  const uint32_t num_padding = num_padding_tickets(ticket);
  for (uint32_t i = threadIdx.x / 32; i < num_padding; i += kComputeWarps) {
    (void)shared.attention.ring.wait(ticket + i);
    shared.attention.ring.release(ticket + i, threadIdx.x % 32);
  }
  ticket += num_padding;
  const AttentionParams& call = shared.compute_call;
  for (uint32_t t = task.tile_first; t < p.num_tokens * task.tile_end; t += task.tile_stride) {
    if (threadIdx.x < 32) set_call_of_row(shared.compute_call, p, t / task.tile_end);
    compute_barrier();
    const AttendedShare share(call, t % task.tile_end, task.tile_end);
    compute_attention<kMaxQPerKv / 16>(shared.attention, call, share.units, ticket);
    compute_barrier();  // the partial results of all warps are there
    if (combines_splits(shared, p, share, t / task.tile_end)) {
      const uint32_t q_per_kv = call.num_q_heads / call.num_kv_heads;
      for (uint32_t i = threadIdx.x / 32; i < q_per_kv; i += kComputeWarps)
        combine_head(call, AttentionCall(call), 0, share.kv_head * q_per_kv + i);
    }
    compute_barrier();  // all warps are done with the call
  }
}

}  // namespace mimo_rt::cuda
