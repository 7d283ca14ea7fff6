#include "plan/costs.h"

#include "core/checks.h"

#include <algorithm>
#include <cmath>

namespace mimo_rt {
namespace {

constexpr double kVisibleKeys = 1024.0;    // a context to assume; unknown when the plan is made
constexpr uint32_t kFuseNormTokens = 16;   // up to here a redundant norm per worker is cheaper than one more edge
constexpr double kExpertTilePairs = 1.0 / 16.0;  // what preparing the activations of a tile costs, in its pairs

PackedFormat packed_format(WeightFormat format) {
  switch (format) {
    case WeightFormat::fp8_block: return PackedFormat::fp8_e4m3;
    case WeightFormat::mxfp4: return PackedFormat::mxfp4;
    case WeightFormat::plain: break;
  }
  return PackedFormat::bf16;
}

/// Linear between the measured numbers of tokens, proportional beyond.
double interpolate(const std::array<double, CostTable::kTokens.size()>& ns, double num_tokens) {
  if (num_tokens >= CostTable::kTokens.back()) return ns.back() * num_tokens / CostTable::kTokens.back();
  size_t i = 1;
  while (num_tokens > CostTable::kTokens[i]) ++i;
  const double low = CostTable::kTokens[i - 1], high = CostTable::kTokens[i];
  return ns[i - 1] + (ns[i] - ns[i - 1]) * (std::max(num_tokens, 1.0) - low) / (high - low);
}

}  // namespace

CostModel::CostModel(const ModelConfig& config, const PlanOptions& options) : config_(config), options_(options) {
  if (!config.num_experts) return;
  const double passed_over = 1.0 - static_cast<double>(config.experts_per_token) / config.num_experts;
  double never_chosen = 1.0;
  for (uint32_t token = 0; token < options.max_tokens; ++token) never_chosen *= passed_over;
  active_experts_ = config.num_experts * (1.0 - never_chosen);
}

double CostModel::small_tile(double bytes, double macs) const {
  return std::max(bytes / options_.bytes_per_ns, macs / options_.macs_per_ns);
}

double CostModel::matrix_tile(PackedFormat format, uint32_t k, double num_tokens) const {
  const uint32_t padded_k = round_up(k, kBlockK);
  const double weights = double{kTileRows} * padded_k;
  if (table().is_measured())
    return weights / 1024 * interpolate(table().matrix_ns[static_cast<size_t>(format)], num_tokens);
  return small_tile(static_cast<double>(row_group_bytes(format, padded_k)), weights * num_tokens);
}

double CostModel::layer_matrix(uint32_t layer_idx, const char* module, uint32_t k) const {
  const WeightFormat format = config_.format_of(concat("model.layers.", layer_idx, '.', module));
  return matrix_tile(packed_format(format), k, options_.max_tokens);
}

double CostModel::attention_tile(const LayerConfig& layer, uint32_t num_shares) const {
  const double keys = layer.window_tokens ? std::min<double>(layer.window_tokens, kVisibleKeys) : kVisibleKeys;
  const double width = layer.qk_head_dim + layer.v_head_dim;
  const double macs = keys * width * layer.num_q_heads / num_shares;
  if (table().is_measured()) return macs / 1024 * table().attention_ns;
  double kv_heads = static_cast<double>(layer.num_kv_heads) / num_shares;
  if (options_.attention_split_keys == 0) kv_heads = std::max(kv_heads, 1.0);  // q heads read all of theirs
  return small_tile(2.0 * keys * width * kv_heads, macs);
}

double CostModel::norm_tile() const {
  if (table().is_measured()) return config_.hidden_size / 1024.0 * table().norm_ns;
  return small_tile(4.0 * config_.hidden_size);
}

double CostModel::expert_gate_up_pair() const {
  const double rows = static_cast<double>(options_.max_tokens) * config_.experts_per_token / active_experts_;
  return 2.0 * matrix_tile(packed_format(config_.expert_format), config_.hidden_size, rows);
}

double CostModel::expert_down_tile() const {
  const double rows = static_cast<double>(options_.max_tokens) * config_.experts_per_token / active_experts_;
  return active_experts_ * matrix_tile(packed_format(config_.expert_format), config_.expert_intermediate_size, rows);
}

uint32_t CostModel::task_ns(double tile_ns, double num_tiles) const {
  return static_cast<uint32_t>(std::min(options_.task_overhead_ns + tile_ns * num_tiles, 4e9));
}

uint32_t CostModel::choose_parts(double num_tiles, double tile_ns, uint32_t max_parts) const {
  if (!table().is_measured()) return max_parts;
  uint32_t best = max_parts;
  double best_ns = 0.0;
  for (uint32_t parts = max_parts; parts >= 1; --parts) {
    const double ns = std::ceil(num_tiles / parts) * tile_ns + parts * table().edge_worker_ns;
    if (parts == max_parts || ns < best_ns) best = parts, best_ns = ns;
  }
  return best;
}

bool CostModel::should_fuse_norms() const {
  const uint32_t tokens = options_.max_tokens, workers = options_.num_workers;
  if (!table().is_measured()) return tokens <= kFuseNormTokens;
  double more_rows = 0.0;  // than its own, on average over steps of 1 .. max_tokens rows
  for (uint32_t rows = 1; rows <= tokens; ++rows) more_rows += rows - (rows + workers - 1) / workers;
  return more_rows / tokens * norm_tile() <= table().edge_ns + (workers - 1) * table().edge_worker_ns;
}

double CostModel::expert_tile_price() const {
  if (!table().is_measured() || table().prepare_ns == 0.0) return kExpertTilePairs;  // a GPU prepares nothing
  const double rows = static_cast<double>(options_.max_tokens) * config_.experts_per_token / active_experts_;
  return rows * config_.hidden_size / 1024.0 * table().prepare_ns / expert_gate_up_pair();
}

}  // namespace mimo_rt
