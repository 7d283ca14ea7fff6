// The accept task of a round: what RoundTasks::accept (engine/round.cpp) does on the host. All blocks draw the target's
// rows (sample_rows.cuh). The one that is done last goes through them while the drafts are confirmed, tells the host, looks
// up the next drafts if they come from the text, waits for the host's order if the next round needs one, and sets up the
// rows of that round, or ends the rounds. Meanwhile all blocks wait for the end of this one: by the gate, far from the
// host's memory.
#pragma once

#include "cuda/device/sync/wait_clock.cuh"
#include "cuda/device/tasks/draft_rows.cuh"
#include "cuda/device/tasks/look_up.cuh"
#include "cuda/device/tasks/sample_rows.cuh"
#include "cuda/round_params.h"
#include "sampling/round_rows.h"

namespace mimo_rt::cuda {

// What became of a row.
inline constexpr uint32_t kRowConfirms = 1;  ///< its token is the draft in the next row
inline constexpr uint32_t kRowEnds = 2;      ///< its token is the last of the text
inline constexpr uint32_t kRowIsBad = 4;     ///< it has no token

__device__ __forceinline__ RoundOrder load_order(const RoundMailbox& mailbox) {
  return {ptx::load_relaxed_system(&mailbox.order.word)};
}

/// What does not depend on the drawn tokens, by different warps: the host's word is far away.
__device__ inline void look_around(RoundTables& round) {
  const uint32_t warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
  if (warp_idx == 1 && lane_idx == 0) round.seen_order = load_order(*round.mailbox);
  if (warp_idx != 0) return;
  uint64_t num_active = 0;
  for (uint32_t l = lane_idx; l < round.num_layers; l += 32) num_active += round.active_experts[l];
  num_active = warp_sum(num_active);
  if (lane_idx == 0) round.num_active_experts = static_cast<uint32_t>(num_active);
}

__device__ inline bool is_stop_id(const RoundTables& round, int32_t token) {
  const auto id = static_cast<uint32_t>(token);
  const uint32_t place = lower_bound(round.num_stop_ids, id, [&](uint32_t i) {
    return static_cast<uint32_t>(round.stop_ids[i]);
  });
  return place < round.num_stop_ids && round.stop_ids[place] == token;
}

/// One thread: the token drawn for row `row` leaves the round. @return what became of the row
__device__ inline uint32_t settle_row(RoundTables& round, RoundRecord& record, uint32_t row) {
  const int32_t token = round.sample.tokens[row];
  if (token < 0) return kRowIsBad;
  record.tokens[row] = token;
  ++round.num_output;
  if (round.token_counts) ++round.token_counts[token];
  if (round.text) round.text[round.token_position + row] = token;
  const uint32_t next = row + 1;
  const bool confirms = next < round.sample.num_rows && token == round.block[next];
  const bool ends = is_stop_id(round, token) || round.num_output >= round.max_tokens;
  return (confirms ? kRowConfirms : 0) | (ends ? kRowEnds : 0);
}

/// One thread: the host's order when it allows round `number`, or forbids all. Waits while it does
/// neither; what is longer than the host's limit is an order to stop.
__device__ inline RoundOrder await_order(const RoundMailbox& mailbox, uint32_t number) {
  const uint64_t idle_ns = mailbox.idle_ns;
  WaitClock clock;
  do {
    ptx::sleep_ns(20);
    const RoundOrder order = load_order(mailbox);
    if (order.decides(number)) return order;
  } while (!clock.has_passed(idle_ns));
  return RoundOrder::stop();
}

/// One thread: the rows of the next round, as RoundState::prepare_round sets them.
__device__ inline void prepare_round(RoundTables& round, StepTables& step, RoundOrder order) {
  const uint32_t position = round.token_position - 1;
  const uint32_t num_pending = round.max_context_rows != 0 ? position - round.num_context : 0;
  const RoundRoom room{round.max_tokens - round.num_output, round.max_context - position, num_pending,
                       round.max_context_rows, round.block_size};
  const uint32_t limit = room.max_drafts(), max_drafts = order.max_drafts(round.match);
  const uint32_t num_drafts = limit < max_drafts ? limit : max_drafts;
  step.num_tokens = step.num_logit_rows = 1 + num_drafts;
  step.context_begin = round.num_context;
  step.num_context_rows = room.num_context_rows(num_drafts != 0);
  for (uint32_t row = 0; row <= num_drafts; ++row) round.positions[row] = position + row;
  round.sample.num_rows = 1 + num_drafts;
  round.sample.num_masked_rows =
      num_masked_rows(round.min_tokens, round.num_output, kMaxBlockTokens);
  if (!round.draft) return;
  step.num_draft_rows = num_drafts != 0 ? round.block_size : 0;
  round.draft->num_masked_rows = round.sample.num_masked_rows;
  list_context(step);
}

/// One thread: tells the host of the round. `fate` is that of `row`, the last one that counts.
__device__ inline void report_round(const AcceptRoundParams& p, RoundRecord& record, uint32_t row, uint32_t fate) {
  RoundTables& round = *p.round;
  StepTables& step = *p.step;
  const bool is_bad = (fate & kRowIsBad) != 0;
  const uint32_t num_emitted = is_bad ? row : row + 1;
  const uint64_t now = ptx::global_timer_ns();
  record.num_emitted = num_emitted;
  record.num_tokens = step.num_tokens;
  record.num_context_rows = step.num_context_rows;
  record.num_active_experts = round.num_active_experts;
  record.last_was_drafted = (fate & kRowConfirms) != 0;
  record.has_bad_logits = is_bad;
  record.ns = round.last_ns != 0 ? now - round.last_ns : 0;
  round.last_ns = now;
  round.token_position += num_emitted;
  round.num_context += step.num_context_rows;
  if (num_emitted != 0) round.block[0] = round.sample.tokens[num_emitted - 1];
  step.is_over = (fate & (kRowEnds | kRowIsBad)) != 0 || round.token_position - 1 >= round.max_context;
  record.has_ended = step.is_over;
  ptx::store_release_system(&record.number, round.number);
  ++round.number;
}

/// One thread: the tokens that count leave the round.
__device__ inline void end_round(const AcceptRoundParams& p) {
  RoundTables& round = *p.round;
  RoundRecord& record = round.mailbox->records[round.number % kMaxLaunchRounds];
  uint32_t row = 0, fate = settle_row(round, record, 0);
  while (fate == kRowConfirms) fate = settle_row(round, record, ++row);
  report_round(p, record, row, fate);
}

/// One thread: the next round, if the host wants one.
__device__ inline void begin_round(const AcceptRoundParams& p) {
  RoundTables& round = *p.round;
  RoundOrder order = round.seen_order;
  if (!order.decides(round.number)) {
    order = await_order(*round.mailbox, round.number);
    round.last_ns = ptx::global_timer_ns();  // the host's time is no round's
  }
  p.step->is_over = order.is_stop();
  if (!order.is_stop()) prepare_round(round, *p.step, order);
}

/// All compute threads: share `share` of `num_shares`.
__device__ inline void accept_round(DrawShared& shared, const AcceptRoundParams& p, uint32_t share,
                                    uint32_t num_shares) {
  RoundTables& round = *p.round;
  if (share == 0) look_around(round);
  sample_rows(shared, *p.rows, round.sample.num_rows, share, num_shares);
  if (!comes_last(shared.is_last, p.arrived, num_shares - 1)) return;
  if (threadIdx.x == 0) end_round(p);
  if (round.text) {
    compute_barrier();  // the text has its tokens
    if (!p.step->is_over) look_up_drafts(shared, round);
  }
  if (threadIdx.x == 0 && !p.step->is_over) begin_round(p);
}

}  // namespace mimo_rt::cuda
