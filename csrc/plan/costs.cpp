#include "plan/costs.h"

#include "core/checks.h"

#include <algorithm>

namespace mimo_rt {
namespace {

constexpr double kTaskOverheadNs = 300.0;  // waiting for the edge, reading the task, signalling
constexpr double kMacsPerNs = 24.0;        // of one worker, all conversions included
constexpr double kVisibleKeys = 1024.0;    // a context to assume; unknown when the plan is made

PackedFormat packed_format(WeightFormat format) {
  switch (format) {
    case WeightFormat::fp8_block: return PackedFormat::fp8_e4m3;
    case WeightFormat::mxfp4: return PackedFormat::mxfp4;
    case WeightFormat::plain: break;
  }
  return PackedFormat::bf16;
}

}  // namespace

CostModel::CostModel(const ModelConfig& config, const PlanOptions& options) : config_(config), options_(options) {
  if (!config.num_experts) return;
  const double passed_over = 1.0 - static_cast<double>(config.experts_per_token) / config.num_experts;
  double never_chosen = 1.0;
  for (uint32_t token = 0; token < options.max_tokens; ++token) never_chosen *= passed_over;
  active_experts_ = config.num_experts * (1.0 - never_chosen);
}

TileCost CostModel::matrix_tile(PackedFormat format, uint32_t k, uint32_t num_tokens) const {
  const uint32_t padded_k = round_up(k, kBlockK);
  return {static_cast<double>(row_group_bytes(format, padded_k)), double{kTileRows} * padded_k * num_tokens};
}

TileCost CostModel::layer_matrix(uint32_t layer_idx, const char* module, uint32_t k) const {
  const WeightFormat format = config_.format_of(concat("model.layers.", layer_idx, '.', module));
  return matrix_tile(packed_format(format), k, options_.max_tokens);
}

TileCost CostModel::attention_tile(const LayerConfig& layer, uint32_t num_shares) const {
  const double keys = layer.window_tokens ? std::min<double>(layer.window_tokens, kVisibleKeys) : kVisibleKeys;
  const double width = layer.qk_head_dim + layer.v_head_dim;
  const double kv_heads = std::max(1.0, static_cast<double>(layer.num_kv_heads) / num_shares);
  return {2.0 * keys * width * kv_heads, keys * width * layer.num_q_heads / num_shares};
}

TileCost CostModel::expert_gate_up_pair() const {
  const double rows = static_cast<double>(options_.max_tokens) * config_.experts_per_token / active_experts_;
  TileCost group = matrix_tile(packed_format(config_.expert_format), config_.hidden_size, 1);
  return {2.0 * group.bytes, 2.0 * group.macs * rows};
}

TileCost CostModel::expert_down_tile() const {
  const uint32_t slots = options_.max_tokens * config_.experts_per_token;
  TileCost group = matrix_tile(packed_format(config_.expert_format), config_.expert_intermediate_size, slots);
  return {group.bytes * active_experts_, group.macs};
}

uint32_t CostModel::task_ns(const TileCost& tile, double num_tiles) const {
  const double work = std::max(tile.bytes / options_.bytes_per_ns, tile.macs / kMacsPerNs);
  return static_cast<uint32_t>(std::min(kTaskOverheadNs + work * num_tiles, 4e9));
}

}  // namespace mimo_rt
