#include "cuda/round_mail.h"

#include <atomic>

#include "core/checks.h"

namespace mimo_rt::cuda {
namespace {

/// Whether the text itself, not the caller or a limit of the executor, has ended the rounds.
bool ends_text(RoundEnd end) {
  return end == RoundEnd::stop_id || end == RoundEnd::max_tokens || end == RoundEnd::context ||
         end == RoundEnd::bad_logits;
}

}  // namespace

void RoundMail::tell(const RoundState& rounds, uint32_t block_size) const {
  put(rounds.stop_requested ? RoundMailbox::kStop : rounds.width.choose(block_size - 1));
}

void RoundMail::put(uint32_t max_drafts) const {
  std::atomic_ref(mailbox()->max_drafts).store(max_drafts, std::memory_order_relaxed);
}

const RoundRecord* RoundMail::read() {
  RoundRecord& record = mailbox()->records[next_number_ % kMaxLaunchRounds];
  if (std::atomic_ref(record.number).load(std::memory_order_acquire) != next_number_)
    return nullptr;
  ++next_number_;
  return &record;
}

void apply_record(RoundState& rounds, const RoundRecord& record, const float* logits,
                  uint32_t stride) {
  constexpr const char* kWhere = "Executor.run_rounds";
  MIMO_RT_CHECK(record.num_tokens - 1 < kMaxStepTokens && record.num_emitted <= record.num_tokens,
                internal, kWhere, "round ", record.number, " at position ", rounds.position,
                ": expected 1..", kMaxStepTokens, " rows and no more tokens, got ",
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
  const bool is_asked = rounds.end == RoundEnd::requested && rounds.stop_requested;
  MIMO_RT_CHECK(record.has_ended ? ends_text(rounds.end) || is_asked : !ends_text(rounds.end),
                internal, kWhere, "round ", record.number, " at position ",
                rounds.position, ": the GPU says that the rounds ",
                record.has_ended ? "end" : "go on", ", the host ends them for reason ",
                static_cast<int>(rounds.end));
}

}  // namespace mimo_rt::cuda
