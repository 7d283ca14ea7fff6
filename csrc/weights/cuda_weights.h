// What one rank's GPU holds of a model, packed for the CUDA kernels in host memory: one block to be
// copied as it is, and where everything lies in it.
#pragma once

#include <mimo_rt/checkpoint.h>
#include <mimo_rt/config.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "weights/cuda_block.h"
#include "weights/pack_cuda.h"

namespace mimo_rt {

/// The same matrix of all experts; that of expert e begins e * shape.bytes() after `offset`.
struct CudaExpertMatrices {
  uint64_t offset = 0;
  CudaMatrixShape shape;
};

struct CudaLayerWeights {
  LayerConfig config;             ///< with the heads of the rank
  uint64_t attn_norm = 0;         ///< offset of float [hidden_size]
  uint64_t mlp_norm = 0;          ///< offset of float [hidden_size]
  uint64_t sink_logits = 0;       ///< offset of float [num_q_heads]; unless config.has_sink: 0
  std::vector<QkvTile> qkv_tiles; ///< of the rank's heads
  CudaDenseMatrix qkv;            ///< rows in the order of `qkv_tiles`
  CudaDenseMatrix o_proj;         ///< k: the rank's heads
  // MoE layers
  CudaTable router;
  uint64_t router_bias = 0;       ///< offset of float [num_experts]
  CudaExpertMatrices expert_gate_up, expert_down;  ///< the rank's part of every expert's width
  // dense layers
  CudaDenseMatrix gate_up, down;  ///< the rank's part of the width
};

/// Immutable after loading, but for `drop_block`.
class CudaWeights {
 public:
  struct Options {
    Rank rank;
    CudaPackOptions pack;
    /// For random weights: of every layer, experts from this one on repeat the first ones. 0: none does.
    uint32_t num_packed_experts = 0;
  };
  /// Packs the rank's share of `checkpoint` in parallel. Codes never change.
  /// @throws Error{invalid_argument} for a rank that is none; Error{unsupported_shape} for formats
  ///         and sizes that the kernels or the number of ranks do not allow; Error{bad_format} for
  ///         NaN and infinite codes or scales; Error{out_of_memory}; Error{cancelled}
  static CudaWeights load(const Checkpoint& checkpoint, const ModelConfig& config,
                          const Options& options);

  CudaWeights(CudaWeights&&) noexcept;
  ~CudaWeights();

  const Rank& rank() const;
  const CudaLayerWeights& layer(uint32_t layer_idx) const;
  const CudaTable& embed() const;          ///< all rows
  const CudaDenseMatrix& lm_head() const;  ///< the rank's part of the vocabulary
  uint64_t final_norm() const;             ///< offset of float [hidden_size]
  const CudaBlockImage& image() const;
  /// Its bytes, unless experts repeat.
  std::span<const uint8_t> block() const { return {image().packed.data(), image().packed.size_bytes()}; }
  /// Frees the bytes, once they are on the device. All else stays.
  void drop_block() noexcept;

 private:
  struct Impl;
  explicit CudaWeights(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mimo_rt
