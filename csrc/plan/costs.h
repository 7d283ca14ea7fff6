// Task times that the planner expects: from the table measured on this machine, or, without one, weight bytes over a
// worker's bandwidth or multiplications over its arithmetic rate, whichever is longer. For balance and for the predicted
// half of traces; no result depends on them.
#pragma once

#include <mimo_rt/config.h>
#include <mimo_rt/plan.h>

#include "weights/packed.h"

#include <cstdint>
#include <string>

namespace mimo_rt {

/// Times are ns of one worker.
class CostModel {
 public:
  CostModel(const ModelConfig& config, const PlanOptions& options);

  double matrix_tile(PackedFormat format, uint32_t k, double num_tokens) const;      ///< one row group
  double layer_matrix(uint32_t layer_idx, const char* module, uint32_t k) const;     ///< all tokens see it
  double attention_tile(const LayerConfig& layer, uint32_t num_shares) const;  ///< a share of a token's heads
  double norm_tile() const;             ///< a row of hidden_size
  double small_tile(double bytes, double macs = 0.0) const;  ///< of anything else
  double expert_gate_up_pair() const;   ///< one pair of row groups of an active expert
  double expert_down_tile() const;      ///< one row group of all active experts
  double expected_active_experts() const { return active_experts_; }
  uint32_t task_ns(double tile_ns, double num_tiles) const;

  /// Among how many of the workers to share out tiles: fewer when another worker in the edge costs more than it saves.
  uint32_t choose_parts(double num_tiles, double tile_ns, uint32_t max_parts) const;
  /// Whether every worker should normalise all rows for itself, rather than its own rows for all.
  bool should_fuse_norms() const;
  /// What a tile of an expert costs beside its pairs, in pairs.
  double expert_tile_price() const;

 private:
  const CostTable& table() const { return options_.costs; }

  const ModelConfig& config_;
  const PlanOptions& options_;
  double active_experts_ = 0.0;  ///< expected, for max_tokens tokens that choose independently
};

}  // namespace mimo_rt
