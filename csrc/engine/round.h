// Rounds: draft a block, verify it with the target, accept, go on. The state that the tasks of a round carry from one
// round to the next, and the ring through which tokens leave while rounds run.
//
// One sequence. P: the position of the anchor, the last token accepted, which has no keys and values yet. A round runs
// the target on block[0 .. num_tokens) at positions P…; row t predicts the token after block[t]. Rows are accepted while
// the token drawn for row t - 1 equals block[t]; the first that differs, or the one after the whole block, is the next
// anchor. So every round emits 1..num_tokens tokens and P grows by as many; keys and values of rejected rows are
// overwritten later.
#pragma once

#include "engine/draft_width.h"
#include "engine/ngram_lookup.h"
#include "engine/step.h"
#include "sampling/round_rows.h"
#include "sampling/speculative.h"

#include <mimo_rt/draft.h>
#include <mimo_rt/stats.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace mimo_rt {

/// Tokens by sequence number, from 0. One writer (the accept task), one reader (the host).
class TokenRing {
 public:
  static constexpr uint32_t kCapacity = 256;

  // Writer. `push` needs free() > 0.
  void push(const SampleResult& token);
  uint32_t free() const;
  // Reader. A token is valid from num_pushed() > number until release(number + 1).
  uint64_t num_pushed() const { return num_pushed_.load(std::memory_order_acquire); }
  const SampleResult& operator[](uint64_t number) const { return tokens_[number % kCapacity]; }
  void release(uint64_t num_read) { num_read_.store(num_read, std::memory_order_release); }

 private:
  std::array<SampleResult, kCapacity> tokens_;
  std::atomic<uint64_t> num_pushed_{0}, num_read_{0};
};

static_assert(kLazyContextRows <= KvCache::kMaxPendingContext);

/// What the caller decides for a generation; constant while rounds run.
struct RoundRequest {
  const SamplingParams* params = nullptr;
  uint64_t sequence_id = 0;
  uint32_t* token_counts = nullptr;         ///< [vocab_size] prompt and output, kept up to date; see SampleRequest
  std::span<const int32_t> stop_ids;        ///< ascending; any of them ends the generation
  uint64_t min_tokens = 0, max_tokens = 0;  ///< of the generation's output; stop ids are masked before min_tokens
  uint32_t max_context = 0;                 ///< positions of the KV cache that rounds may write: [0, max_context)
  uint32_t max_context_rows = 0;            ///< of the plan: rows of draft context that one round can make; 0: no draft model
  NgramLookup* lookup = nullptr;            ///< without a draft model: proposes; holds the text, the anchor included
  DraftOptions::Proposal proposal = DraftOptions::Proposal::argmax;
  std::vector<RoundStats>* rounds = nullptr;  ///< gets every round, if not nullptr
  const std::atomic<bool>* cancelled = nullptr;  ///< set by any thread; if not nullptr, as stop_requested, but no begin() resets it
};

/// Why rounds ended.
enum class RoundEnd : uint8_t {
  running,
  stop_id,
  max_tokens,
  context,     ///< the anchor stands at max_context: no room for its keys and values
  requested,   ///< should_stop(), or the ring is full; the generation may go on
  max_rounds,  ///< the generation may go on
  bad_logits,  ///< a row without any finite logit
};

struct RoundState {
  RoundState(const RoundRequest& request_, DraftWidth& width_, uint32_t vocab_size, uint32_t block_size);

  RoundRequest request;
  DraftWidth& width;                        ///< chooses how many drafts the next round verifies
  TokenRing ring;
  std::atomic<bool> stop_requested{false};  ///< set by any thread: the rounds end after the running one
  uint32_t max_rounds = ~0u;                ///< of one Executor::run_rounds
  /// After max_rounds the caller soon wants more of the same generation: a device may wait for it with its own state.
  bool comes_back = false;
  /// The round that begins runs in a step that others share: it has all drafts that the lookup found, and others choose
  /// how many are verified, see accept_drawn. A draft model has no part in it: its context is the step's business.
  bool is_shared = false;
  uint64_t launch_id = 0;                   ///< the executor's: of the launch that has waited for more rounds; 0: none

  // Carried from round to round by the accept task.
  std::array<int32_t, kMaxBlockSize> block{};  ///< [0]: the anchor; [1 .. num_tokens): drafts of the running round
  uint32_t position = 0;                       ///< P
  uint32_t num_context = 0;                    ///< positions [0, num_context) are in the draft's KV cache
  uint64_t num_output = 0;                     ///< tokens of the generation so far, the anchor included
  RoundEnd end = RoundEnd::running;
  uint64_t round_begin_ns = 0;                 ///< steady clock; when the running round began
  uint32_t num_rounds = 0;                     ///< of this run_rounds
  uint64_t num_rows = 0;                       ///< that they verified, anchors included
  uint64_t active_experts = 0;                 ///< of this run_rounds, by `count_experts`

  /// The step of the running round; arrays below.
  StepInput input;
  DraftOffer offer;                            ///< when it is shared
  std::array<uint32_t, kMaxBlockSize> positions{}, seq_idx{}, logit_rows{};

  /// Fills `input` for the round that begins at `position` with the anchor block[0]: chooses the width, limited by what
  /// max_tokens and max_context leave, and the rows of context to make, see RoundRoom. Also resets num_rounds, end,
  /// active_experts and stop_requested.
  /// When a limit is reached already, it sets `end` and leaves `input` empty: then no round may run.
  void begin();
  /// How the token after each row of a shared round is drawn, one after the other: [kMaxBlockSize]; they have one scratch.
  void fill_requests(std::span<SampleRequest> requests) const;
  /// Whether the running round is the last one, whatever it emits.
  bool should_stop() const { return stop_requested || (request.cancelled && *request.cancelled); }
  /// For rounds that a device begins by itself: how many drafts to verify at most. `match`: of looked up drafts, the length
  /// of their match, 1..kMaxLookupMatch; of others it says nothing.
  uint32_t max_drafts(uint32_t match) const;
  /// By the executor, once per round or per job of several: `num_active` experts in the last `num_last` rounds.
  void count_experts(uint64_t num_active, uint32_t num_last);
  /// The caller ended the text at token `num_tokens`, at least 1, of the last round: statistics forget what came after.
  void cut_last_round(uint32_t num_tokens);

 private:
  RoundEnd limit_reached() const;
  RoundRoom room() const;
  void prepare_round();
  void look_up_drafts(uint32_t limit);
  bool draws_drafts() const;              ///< else a draft is the best token
  uint8_t* scratch(uint32_t row) const;  ///< sampler_scratch_bytes; row 0: of accept, others: of draft_sample
  friend struct RoundTasks;
  std::array<Proposal, kMaxBlockSize> proposals_;  ///< of the running round, when drafts are drawn
  uint32_t num_proposals_ = 0;                     ///< drafts that the running round proposes
  uint32_t num_found_ = 0;                         ///< by the lookup, for the running round
  bool narrows_ = false;                           ///< the running round verifies as many as DraftWidth::narrow says
  std::array<float, kMaxBlockSize> scores_{};      ///< [1 .. num_proposals_], when it narrows, or of a lookup
  std::atomic<uint32_t> num_proposed_{0};          ///< of them, so far
  uint64_t scratch_stride_ = 0;
  std::unique_ptr<std::max_align_t[]> scratch_;
  uint32_t vocab_size_ = 0, block_size_ = 0;
};

/// The draft_sample task for row `row`: block[row] <- draft_logits, perhaps of a part of the vocabulary. Does nothing for
/// row 0 and for rows beyond those that the round may verify. Rows may be proposed by different threads at once; the last
/// of them decides how many rows the round verifies (input.num_tokens), before any task reads that.
void propose_token(RoundState& state, uint32_t row, const LogitRow& draft_logits);

/// What the target made of a round's rows.
struct TargetRows {
  const float* logits;             ///< [num_tokens, stride]; not read with `best`
  uint32_t stride;
  const LogitRow* best = nullptr;  ///< [num_tokens] the best logits of each, when the round wants no whole rows
  const SampleResult* drawn = nullptr;  ///< [num_tokens] instead of logits: what was drawn, up to a draft not confirmed
};

/// A round whose accept task ran elsewhere, on a device with a copy of the state.
struct RoundReport {
  std::span<const int32_t> tokens;       ///< emitted
  const float* logits = nullptr;         ///< [tokens.size(), stride]; nullptr when the request wants no logprobs
  uint32_t stride = 0;
  uint32_t num_tokens = 1;               ///< rows that the round verified: the anchor and drafts
  uint32_t num_context_rows = 0;
  bool last_was_drafted = false;         ///< the last token equals the draft of its position; nothing with bad logits
  bool has_bad_logits = false;           ///< the row after the tokens had no finite logit
  uint64_t ns = 0;                       ///< 0: since the round before was reported
};

/// Does with a report what accept_round does with the tokens that it draws. When `end` says that the rounds were asked
/// to stop, reports of rounds that ran meanwhile may follow.
void replay_round(RoundState& state, const RoundReport& report);

/// The accept task: draws and compares row by row, emits tokens to the ring, moves `position`, tells `width` what
/// happened, ends the rounds or prepares the next.
void accept_round(RoundState& state, const TargetRows& rows);

/// The same for a shared round, of which so many rows were verified as tokens were drawn. `spent`: see RoundOutcome.
void accept_drawn(RoundState& state, std::span<const SampleResult> drawn, double spent);

}  // namespace mimo_rt
