#include "cuda/round_mail.h"

#include <atomic>

#include "core/checks.h"

namespace mimo_rt::cuda {
namespace {

constexpr const char* kWhere = "Executor.run_rounds";

/// Whether the text itself, not the caller or a limit of the executor, has ended the rounds.
bool ends_text(RoundEnd end) {
  return end == RoundEnd::stop_id || end == RoundEnd::max_tokens || end == RoundEnd::context ||
         end == RoundEnd::bad_logits;
}

static_assert(std::atomic_ref<uint64_t>::is_always_lock_free, "the device reads an order as one word");

}  // namespace

RoundMail::RoundMail(std::shared_ptr<StepDevice> device, uint64_t idle_ns)
    : memory_(std::move(device), sizeof(RoundMailbox), DeviceBuffer::Place::pinned) {
  mailbox()->idle_ns = idle_ns;
}

void RoundMail::tell(const RoundState& rounds) const {
  if (rounds.should_stop() || rounds.end != RoundEnd::running) return stop();
  RoundOrder order = RoundOrder::until(last_number_);
  const uint32_t num_matches = rounds.request.lookup ? kMaxLookupMatch : 1;
  for (uint32_t match = 1; match <= num_matches; ++match) order.set_max_drafts(match, rounds.max_drafts(match));
  put(order);
}

void RoundMail::put(RoundOrder order) const {
  std::atomic_ref(mailbox()->order.word).store(order.word, std::memory_order_relaxed);
}

RoundRecord& RoundMail::next_record() const { return mailbox()->records[next_number_ % kMaxLaunchRounds]; }

bool RoundMail::has_next() const {
  return std::atomic_ref(next_record().number).load(std::memory_order_acquire) == next_number_;
}

const RoundRecord* RoundMail::read() {
  if (!has_next()) return nullptr;
  MIMO_RT_CHECK(static_cast<int32_t>(last_number_ - next_number_) >= 0, internal, kWhere,
                "expected no round after number ", last_number_, ", got one");
  const RoundRecord& record = next_record();
  ++next_number_;
  return &record;
}

void apply_record(RoundState& rounds, const RoundRecord& record, const float* logits,
                  uint32_t stride) {
  MIMO_RT_CHECK(record.num_tokens - 1 < kMaxBlockTokens && record.num_emitted <= record.num_tokens,
                internal, kWhere, "round ", record.number, " at position ", rounds.position,
                ": expected 1..", kMaxBlockTokens, " rows and no more tokens, got ",
                record.num_tokens, " and ", record.num_emitted);
  replay_round(rounds, {.tokens = {record.tokens, record.num_emitted},
                        .logits = logits,
                        .stride = stride,
                        .num_tokens = record.num_tokens,
                        .num_context_rows = record.num_context_rows,
                        .last_was_drafted = record.last_was_drafted != 0,
                        .has_bad_logits = record.has_bad_logits != 0,
                        .ns = record.ns});
  rounds.count_experts(record.num_active_experts, 1);
  MIMO_RT_CHECK((record.has_ended != 0) == ends_text(rounds.end), internal, kWhere, "round ",
                record.number, " at position ", rounds.position, ": the GPU says that the text ",
                record.has_ended ? "ends" : "goes on", ", the host ends the rounds for reason ",
                static_cast<int>(rounds.end));
}

}  // namespace mimo_rt::cuda
