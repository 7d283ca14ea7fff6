// All weights of a model, packed for the CPU backends (the ref executor reads the same bytes).
#pragma once

#include <mimo_rt/checkpoint.h>
#include <mimo_rt/config.h>
#include <mimo_rt/packed_cache.h>

#include "weights/packed.h"
#include "weights/qkv_tiles.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

namespace mimo_rt {

struct LayerWeights {
  const float* attn_norm = nullptr;    ///< [hidden_size]
  const float* mlp_norm = nullptr;     ///< [hidden_size]
  const float* sink_logits = nullptr;  ///< [num_q_heads] or nullptr
  PackedMatrix qkv;                    ///< rows in the order of `qkv_tiles`
  std::vector<QkvTile> qkv_tiles;
  PackedMatrix o_proj;                 ///< rows hidden_size, k = num_q_heads * v_head_dim
  // MoE layers
  PackedMatrix router;                 ///< f32, rows num_experts
  const float* router_bias = nullptr;  ///< [num_experts], e_score_correction_bias
  std::vector<PackedMatrix> expert_gate_up;  ///< [num_experts]; row groups alternate: 16 gate rows, 16 up rows
  std::vector<PackedMatrix> expert_down;     ///< [num_experts]
  // dense layers
  PackedMatrix gate_up, down;
};

/// (bytes packed so far, bytes in all); called from one thread at a time; returning false cancels the load.
using ProgressCallback = std::function<bool(uint64_t done_bytes, uint64_t total_bytes)>;

struct PagePlacement;

/// Owns one arena; immutable and shareable after construction.
class Weights {
 public:
  struct Options {
    uint32_t num_threads = 0;    ///< 0: num_usable_cores()
    ProgressCallback progress;   ///< may be empty
    std::filesystem::path cache_dir{};  ///< keeps packed arenas; empty: none
    bool use_mmap = true;        ///< false: a file of `cache_dir` is read into memory of our own
    /// Where to put what is packed, see page_placement.h; nullptr: wherever the packing threads run. What
    /// comes from a file of `cache_dir` lies where the kernel puts it.
    const PagePlacement* placement = nullptr;
  };
  /// Packs `checkpoint` in parallel and releases its pages as it goes: peak memory <= 1.15 x packed_bytes(). Maps the
  /// result of an earlier load when `options.cache_dir` has it; see packed_cache.h.
  /// @throws Error{bad_format} for E8M0 0xFF, FP8 NaN codes, non-finite scales (names tensor and index);
  ///         Error{out_of_memory} before anything is read when the machine cannot hold it; Error{cancelled}.
  static Weights load(const Checkpoint& checkpoint, const ModelConfig& config, const Options& options);
  /// Random weights of the right shapes and formats, made in memory: for benchmarks. Equal seeds give equal bytes.
  static Weights synthetic(const ModelConfig& config, uint64_t seed, const PagePlacement* placement = nullptr);

  Weights(Weights&&) noexcept;
  ~Weights();

  const ModelConfig& config() const;
  const LayerWeights& layer(uint32_t layer_idx) const;
  const PackedMatrix& embed() const;       ///< bf16, f32 where that loses a value; rows vocab, gathered one by one
  const PackedMatrix& lm_head() const;     ///< the same matrix as embed() when tied
  const float* final_norm() const;         ///< [hidden_size]
  uint64_t packed_bytes() const;
  const PackedCacheReport& cache_report() const;

 private:
  struct Impl;
  explicit Weights(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mimo_rt
