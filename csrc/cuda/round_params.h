// What the accept task of a round works on, and what the device and the host tell each other while
// rounds run. For g++ and nvcc.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "cuda/step_params.h"
#include "sampling/round_rows.h"

namespace mimo_rt::cuda {

/// Rounds of one launch: a fraction of a second, so that nobody is locked out for longer.
inline constexpr uint32_t kMaxLaunchRounds = 64;

/// One round as the host hears of it. Pinned host memory, written by the accept task.
struct alignas(128) RoundRecord {
  uint32_t number;       ///< of the round, see RoundTables; written last (release, system scope)
  uint32_t num_emitted;  ///< tokens
  uint32_t num_tokens;   ///< rows that were verified: the anchor and drafts
  uint32_t num_context_rows;
  uint32_t num_active_experts;  ///< summed over the layers
  uint32_t last_was_drafted;    ///< the last token equals the draft of its position; not said with bad logits
  uint32_t has_bad_logits;      ///< the row after the tokens had no finite logit
  uint32_t has_ended;           ///< the text has: no further round
  uint64_t ns;                  ///< since the round before, without the wait for the host; 0: the first of its launch
  int32_t tokens[kMaxBlockTokens];
};

/// What the host wants of rounds to come, in one word: it may change at any time.
struct RoundOrder {
  static constexpr uint32_t kNumberBits = 15, kDraftBits = 3;
  static constexpr uint32_t kNumberMask = (1u << kNumberBits) - 1, kDraftMask = (1u << kDraftBits) - 1;
  static_assert(kMaxBlockTokens - 1 <= kDraftMask && kNumberBits + 1 + kMaxLookupMatch * kDraftBits == 64);

  /// From bit 0 on: the number of the last round that may run before another order, modulo 2^15; whether there shall be no
  /// further round; of a match of 1, 2, … tokens, how many drafts behind it a round verifies at most. Drafts of a model have
  /// a match of 1.
  uint64_t word = 0;

  static RoundOrder until(uint32_t last_number) { return {last_number & kNumberMask}; }
  MIMO_RT_HOST_DEVICE static RoundOrder stop() { return {uint64_t{1} << kNumberBits}; }

  MIMO_RT_HOST_DEVICE bool is_stop() const { return (word >> kNumberBits & 1) != 0; }
  /// Whether it says anything about round `number`, which is near the last one: that it may run, or that none may.
  MIMO_RT_HOST_DEVICE bool decides(uint32_t number) const {
    return is_stop() || ((static_cast<uint32_t>(word) - number) >> (kNumberBits - 1) & 1) == 0;
  }
  /// `match`: 0: nothing was found.
  MIMO_RT_HOST_DEVICE uint32_t max_drafts(uint32_t match) const {
    return match == 0 ? 0 : static_cast<uint32_t>(word >> first_bit(match)) & kDraftMask;
  }
  /// Once for each match.
  void set_max_drafts(uint32_t match, uint32_t num_drafts) { word |= uint64_t{num_drafts} << first_bit(match); }

 private:
  MIMO_RT_HOST_DEVICE static constexpr uint32_t first_bit(uint32_t match) { return kNumberBits + 1 + (match - 1) * kDraftBits; }
};

/// Tokens of a text to look up are read in groups of so many.
inline constexpr uint32_t kTextAlignment = 16;

/// In pinned host memory.
struct RoundMailbox {
  RoundOrder order;
  uint64_t idle_ns;  ///< a launch that has waited for an order for so long leaves
  RoundRecord records[kMaxLaunchRounds];  ///< of round n: n % kMaxLaunchRounds
};

/// A generation on the device: what RoundState is on the host. The host sets it before a launch.
struct RoundTables {
  /// Of the target's rows. The end of a round keeps num_rows and num_masked_rows up to date.
  SampleParams sample;
  SampleParams* draft = nullptr;      ///< of the drafts, num_masked_rows likewise; nullptr: there is no draft model
  const int32_t* stop_ids = nullptr;  ///< [num_stop_ids] ascending
  uint32_t num_stop_ids = 0;
  uint32_t max_context = 0;
  uint64_t min_tokens = 0, max_tokens = 0;
  uint32_t max_context_rows = 0;
  uint32_t block_size = 0;                ///< 1 .. kMaxBlockTokens
  uint32_t num_layers = 0;
  const uint32_t* active_experts = nullptr;  ///< [num_layers]
  uint32_t* token_counts = nullptr;       ///< [vocab_size], or nullptr
  int32_t* block = nullptr;               ///< [block_size] anchor and drafts: StepTables::token_ids
  uint32_t* positions = nullptr;          ///< [block_size] StepTables::positions
  /// [token_position] prompt and output, where drafts are looked up, aligned to 16 bytes; with room for what the rounds emit,
  /// in all a multiple of kTextAlignment. nullptr: they are not.
  int32_t* text = nullptr;
  RoundMailbox* mailbox = nullptr;
  // Carried from round to round by the accept task.
  uint64_t num_output = 0;
  uint64_t last_ns = 0;         ///< when the running round began: the one before ended, or the host allowed it; 0: with the launch
  uint32_t token_position = 0;  ///< of the token that row 0 draws: one after the anchor's
  uint32_t num_context = 0;
  uint32_t number = 0;          ///< of the running round, over all launches
  uint32_t match = 1;           ///< by which the drafts of the next round were found
  // Of the running round, set by share 0 of the accept task for the one that ends it.
  RoundOrder seen_order = {};
  uint32_t num_active_experts = 0;
};

/// A tile is a share of the tokens of all rows; the share that is done last ends the round.
struct AcceptRoundParams {
  RoundTables* round = nullptr;
  StepTables* step = nullptr;  ///< of the running round, then of the next
  const SampledRows* rows = nullptr;
  uint32_t* arrived = nullptr;  ///< [1] shares that are done; between rounds 0
};

}  // namespace mimo_rt::cuda
