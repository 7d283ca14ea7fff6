// Keys and values of the running sequences: pages for full layers, a ring for window layers. BF16.
//
// Full layer, per page: [num_kv_heads][kPageTokens][qk_head_dim] K, then the same with v_head_dim for V. One page table
// per sequence serves all full layers: a page holds the keys and values of all of them.
// Window layer, per sequence: [num_kv_heads][ring_rows][dim], row = pos % ring_rows, with
// ring_rows >= window_tokens + max_step_tokens (or max_context, if that is less) rounded up, so that a step may write
// all its rows before any is read.
#pragma once

#include <mimo_rt/config.h>
#include <mimo_rt/draft.h>

#include "core/kv_segment.h"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace mimo_rt {

/// Keys and values that an executor keeps in memory of its own, a GPU's or as float64, instead of in the rows below.
class KvStore {
 public:
  virtual ~KvStore() = default;
  virtual uint64_t bytes() const = 0;
};

class KvCache {
 public:
  static constexpr uint32_t kPageTokens = 64;
  static constexpr uint32_t kRingStep = 16;  ///< rows; rings are rounded up to this
  /// Rounds may leave so many positions without draft keys and values before they make them.
  static constexpr uint32_t kMaxPendingContext = 64;

  struct Options {
    uint32_t max_context = 0;      ///< tokens per sequence
    uint32_t max_step_tokens = 1;  ///< rows that one step may add to a sequence
    uint32_t num_seqs = 1;
  };
  /// With a draft: its layers follow the target's (layer_idx num_layers + n; windows are rings, else pages), and a ring
  /// holds the features of the last max_step_tokens + block_size + kMaxPendingContext positions at least.
  /// @throws Error{invalid_argument, out_of_memory}
  KvCache(const ModelConfig& config, const Options& options, const DraftConfig* draft = nullptr);
  /// A joint cache for one step: its sequence i is the only one of parts[i]. Has no memory of its own, so it does not grow or
  /// shrink. The parts, of one model, must outlive it.
  /// @throws Error{invalid_argument}
  explicit KvCache(std::vector<KvCache*> parts);
  std::span<KvCache* const> parts() const;  ///< of a joint cache; else none
  KvCache(KvCache&&) noexcept;
  ~KvCache();

  /// Makes room for positions [0, num_tokens) of a sequence. @throws Error{capacity}: the sequence is unchanged.
  void reserve(uint32_t seq_idx, uint32_t num_tokens);
  /// Forgets everything from position num_tokens on and frees its pages.
  void truncate(uint32_t seq_idx, uint32_t num_tokens);
  /// Gives the memory back to the system; it returns as it is written again. Does nothing while a
  /// sequence holds tokens.
  void release_memory() noexcept;
  /// Whether the window rings still hold all that a continuation at `num_tokens` needs, when steps have written
  /// positions [0, stored_tokens): the most the sequence ever had since it was empty, rejected tokens included (their
  /// rows overwrote older ring rows for good). Draft layers count as if all stored positions had draft keys and values.
  /// Features are not looked at: positions from stored_tokens - feature_rows() on have theirs.
  bool can_truncate(uint32_t stored_tokens, uint32_t num_tokens) const;

  // Called by executors, inside steps; the position must be reserved.
  uint16_t* k_row(uint32_t layer_idx, uint32_t seq_idx, uint32_t kv_head_idx, uint32_t pos);
  uint16_t* v_row(uint32_t layer_idx, uint32_t seq_idx, uint32_t kv_head_idx, uint32_t pos);
  /// Contiguous runs that cover positions [pos_begin, pos_end), ascending. `out` holds max_segments() entries.
  uint32_t segments(uint32_t layer_idx, uint32_t seq_idx, uint32_t kv_head_idx, uint32_t pos_begin, uint32_t pos_end,
                    KvSegment* out) const;
  uint32_t max_segments() const;
  /// [captured layers * hidden_size] bf16 of one position: row pos % feature_rows(seq_idx).
  uint16_t* feature_row(uint32_t seq_idx, uint32_t pos);
  uint32_t feature_rows(uint32_t seq_idx = 0) const;  ///< 0 without a draft
  uint32_t max_context() const;
  uint32_t max_step_tokens() const;
  uint32_t num_seqs() const;
  uint32_t num_layers() const;
  uint32_t reserved_tokens(uint32_t seq_idx) const;  ///< positions [0, this) may be written
  uint32_t ring_rows(uint32_t layer_idx) const;  ///< 0 for full layers
  uint64_t bytes() const;  ///< of the rows, or of the store, also while that is released

  /// Made by the executor that first sees the cache; goes with it, and when its memory is released.
  std::shared_ptr<KvStore>& store();

 private:
  void check_has_memory(const char* where) const;

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mimo_rt
