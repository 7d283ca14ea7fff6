// The weights of a DFlash draft, packed like the target's.
#pragma once

#include <mimo_rt/draft.h>

#include "weights/packed.h"
#include "weights/weights.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

namespace mimo_rt {

struct DraftLayerWeights {
  const float* attn_norm = nullptr;    ///< [hidden_size]
  const float* mlp_norm = nullptr;     ///< [hidden_size]
  const float* q_norm = nullptr;       ///< [qk_head_dim] or nullptr
  const float* k_norm = nullptr;       ///< [qk_head_dim] or nullptr
  const float* sink_logits = nullptr;  ///< [num_q_heads] or nullptr
  PackedMatrix qkv;      ///< rows in stored order: all q heads, all k heads, all v heads (whole groups of 16 per head)
  PackedMatrix o_proj;   ///< rows hidden_size, k = num_q_heads * v_head_dim
  PackedMatrix gate_up;  ///< row groups alternate: 16 gate rows, 16 up rows
  PackedMatrix down;     ///< rows hidden_size, k = intermediate_size
};

/// The mask embedding of a draft, as a row of a BF16 table. `target_embedding`: see read_mask_embedding.
/// @throws Error{missing_tensor}; Error{unsupported_shape} for a value that BF16 does not hold
std::vector<uint16_t> read_mask_row(const Checkpoint& draft, const DraftConfig& config,
                                    const TensorInfo* target_embedding = nullptr);

/// Owns its arenas; immutable and shareable once it is bound to its target.
class DraftWeights {
 public:
  /// Reads the safetensors files (through their index when there is one, whatever their names) and the mask embedding
  /// of `draft_dir`. `target_embedding`: see read_mask_embedding.
  /// @throws as Weights::load; Error{missing_tensor} for a missing mask embedding.
  static DraftWeights load(const std::filesystem::path& draft_dir, const DraftConfig& config,
                           const Weights::Options& options,
                           const Checkpoint::Options& file_options = {},
                           const TensorInfo* target_embedding = nullptr);
  /// Random weights of the right shapes; with a `draft_vocab_size`, tokens spread over `vocab_size`. Equal seeds give
  /// equal bytes.
  static DraftWeights synthetic(const DraftConfig& config, uint64_t seed);

  /// Makes `lm_head`: the target's matrix itself, or a copy of the rows that the draft can propose. Before any executor
  /// sees the draft; the target outlives it. @throws Error{shape_mismatch, out_of_memory}
  void bind(const Weights& target);

  DraftWeights(DraftWeights&&) noexcept;
  ~DraftWeights();

  const DraftConfig& config() const;
  const PackedMatrix& fc() const;           ///< rows hidden_size, k = target_layer_ids.size() * hidden_size
  const float* hidden_norm() const;         ///< [hidden_size]
  const float* final_norm() const;          ///< [hidden_size]
  const uint16_t* mask_embedding() const;   ///< [hidden_size] bf16
  const DraftLayerWeights& layer(uint32_t layer_idx) const;
  const PackedMatrix& lm_head() const;      ///< rows of the target's lm_head; empty before bind
  const int32_t* vocab_ids() const;         ///< [draft_vocab_size] ascending, token of each row of lm_head; nullptr: all
  uint64_t packed_bytes() const;            ///< own memory: without an lm_head that is the target's
  const PackedCacheReport& cache_report() const;

 private:
  struct Impl;
  explicit DraftWeights(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mimo_rt
