// Rough task times: weight bytes over a worker's bandwidth, or multiplications over its arithmetic rate, whichever is
// longer. For balance and for the predicted half of traces; nothing else depends on them.
#pragma once

#include <mimo_rt/config.h>
#include <mimo_rt/plan.h>

#include "weights/packed.h"

#include <cstdint>
#include <string>

namespace mimo_rt {

/// Work of one tile.
struct TileCost {
  double bytes = 0.0;  ///< read from memory
  double macs = 0.0;   ///< multiply-adds
};

class CostModel {
 public:
  CostModel(const ModelConfig& config, const PlanOptions& options);

  TileCost matrix_tile(PackedFormat format, uint32_t k, uint32_t num_tokens) const;  ///< one row group
  TileCost layer_matrix(uint32_t layer_idx, const char* module, uint32_t k) const;   ///< all tokens see it
  TileCost attention_tile(const LayerConfig& layer, uint32_t num_shares) const;  ///< a share of a token's heads
  TileCost expert_gate_up_pair() const;  ///< one pair of row groups of an active expert
  TileCost expert_down_tile() const;     ///< one row group of all active experts
  double expected_active_experts() const { return active_experts_; }
  uint32_t task_ns(const TileCost& tile, double num_tiles) const;

 private:
  const ModelConfig& config_;
  const PlanOptions& options_;
  double active_experts_ = 0.0;  ///< expected, for max_tokens tokens that choose independently
};

}  // namespace mimo_rt
