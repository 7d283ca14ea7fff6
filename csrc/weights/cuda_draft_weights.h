// What a GPU holds of a DFlash draft: as CudaWeights, a block of its own. Every rank has all of it.
#pragma once

#include <mimo_rt/draft.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "weights/cuda_block.h"

namespace mimo_rt {

/// Offsets into the draft's block.
struct CudaDraftLayerWeights {
  uint64_t attn_norm = 0, mlp_norm = 0;  ///< of float [hidden_size]
  uint64_t q_norm = 0, k_norm = 0;       ///< of float [qk_head_dim]; unless config.has_qk_norm: 0
  uint64_t sink_logits = 0;              ///< of float [num_q_heads]; unless config.has_sink: 0
  CudaDenseMatrix qkv;                   ///< all q heads, all k heads, all v heads in turn
  CudaDenseMatrix o_proj, gate_up, down;
};

/// Immutable after loading, but for `drop_block`.
class CudaDraftWeights {
 public:
  struct Target {
    const Checkpoint& checkpoint;
    const ModelConfig& config;
  };
  /// Packs the draft in `draft_dir`, and of the target the rows of the head that the draft can propose.
  /// @throws as CudaWeights::load and DraftWeights::load; Error{unsupported_shape} unless keys and
  ///         values of all layers have one format
  static CudaDraftWeights load(const std::filesystem::path& draft_dir, const DraftConfig& config,
                               const Target& target, const CudaPackOptions& options,
                               const Checkpoint::Options& file_options = {});
  /// The same, of a draft that is open. @throws as above
  static CudaDraftWeights load(const Checkpoint& draft, const DraftConfig& config, const Target& target,
                               const CudaPackOptions& options);

  CudaDraftWeights(CudaDraftWeights&&) noexcept;
  ~CudaDraftWeights();

  const DraftConfig& config() const;
  const CudaDenseMatrix& fc() const;
  /// The k and v heads of all layers in turn, once more: tasks of context go through several layers.
  const CudaDenseMatrix& context_kv() const;
  const CudaDraftLayerWeights& layer(uint32_t layer_idx) const;
  uint64_t hidden_norm() const;     ///< offset of float [hidden_size]
  uint64_t final_norm() const;      ///< offset of float [hidden_size]
  uint64_t mask_embedding() const;  ///< offset of BF16 [hidden_size]
  const CudaDenseMatrix* lm_head() const;  ///< [draft_vocab_size]; nullptr: the target's
  uint64_t vocab_ids() const;       ///< offset of int32 [draft_vocab_size], with a head of its own
  const CudaBlockImage& image() const;
  std::span<const uint8_t> block() const { return {image().packed.data(), image().packed.size_bytes()}; }
  /// Frees the bytes, once they are on the device. All else stays.
  void drop_block() noexcept;

 private:
  struct Impl;
  explicit CudaDraftWeights(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mimo_rt
