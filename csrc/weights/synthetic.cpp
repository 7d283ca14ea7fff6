// Weights::synthetic: random codes in the formats that a checkpoint of this config would have.
//
// Scales are chosen so that a matrix maps inputs of order one to outputs of order one: activations
// keep their size through all layers and no sum overflows.
#include "core/checks.h"
#include "weights/layout.h"
#include "weights/random_fill.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Weights.synthetic";
/// The module whose stored format decides; parts of one matrix are stored alike.
std::string module_name(const ModelConfig& config, const MatrixSlot& slot) {
  const std::string layer = concat("model.layers.", slot.layer_idx, '.');
  const bool is_fused = config.qkv_layout == QkvLayout::fused;
  switch (slot.role) {
    case MatrixRole::qkv: return layer + (is_fused ? "self_attn.qkv_proj" : "self_attn.q_proj");
    case MatrixRole::o_proj: return layer + "self_attn.o_proj";
    case MatrixRole::gate_up: return layer + "mlp.gate_proj";
    case MatrixRole::down: return layer + "mlp.down_proj";
    case MatrixRole::expert_gate_up:
      return concat(layer, "mlp.experts.", slot.expert_idx, ".gate_proj");
    case MatrixRole::expert_down:
      return concat(layer, "mlp.experts.", slot.expert_idx, ".down_proj");
    default: return {};
  }
}

PackedFormat usual_format(const ModelConfig& config, const MatrixSlot& slot) {
  if (slot.role == MatrixRole::router) return PackedFormat::f32;
  const std::string module = module_name(config, slot);
  if (module.empty()) return PackedFormat::bf16;
  switch (config.format_of(module)) {
    case WeightFormat::plain: return PackedFormat::bf16;
    case WeightFormat::fp8_block: return PackedFormat::fp8_e4m3;
    case WeightFormat::mxfp4: return PackedFormat::mxfp4;
  }
  return PackedFormat::bf16;
}

/// Which rows of a group are not padding, as bits.
uint32_t valid_lanes(const WeightsData& data, const MatrixSlot& slot, uint32_t group) {
  const ModelConfig& config = data.config;
  uint32_t rows = config.hidden_size;
  uint32_t index = group;
  switch (slot.role) {
    case MatrixRole::embed:
    case MatrixRole::lm_head: rows = config.vocab_size; break;
    case MatrixRole::router: rows = config.num_experts; break;
    case MatrixRole::gate_up: rows = config.intermediate_size; index /= 2; break;
    case MatrixRole::expert_gate_up: rows = config.expert_intermediate_size; index /= 2; break;
    case MatrixRole::qkv: {
      const QkvTile& tile = data.layers[slot.layer_idx].qkv_tiles[group];
      uint32_t lanes = 0;
      for (uint32_t i = 0; i < kTileRows; ++i)
        if (qkv_tile_element(tile, data.layer_config(slot), i) >= 0) lanes |= 1u << i;
      return lanes;
    }
    default: break;
  }
  return first_lanes(rows, index);
}

/// Outputs of order one, except where the model wants less or more.
float wanted_rms(const WeightsData& data, const MatrixSlot& slot) {
  if (slot.role == MatrixRole::embed && !data.is_tied()) return 1.0f;
  const bool feeds_residual = slot.role == MatrixRole::o_proj || slot.role == MatrixRole::down ||
                              slot.role == MatrixRole::expert_down;
  const bool makes_logits = slot.role == MatrixRole::embed || slot.role == MatrixRole::lm_head;
  const float gain = feeds_residual ? 0.5f : makes_logits ? 2.0f : 1.0f;
  return gain / std::sqrt(static_cast<float>(slot.stored_k));
}

}  // namespace

Weights Weights::synthetic(const ModelConfig& config, uint64_t seed, const PagePlacement* placement) {
  auto impl = std::make_unique<Impl>();
  impl->config = config;
  const WeightsData& data = *impl;
  const WeightsLayout layout = plan_layout(
      *impl, [&](const MatrixSlot& slot) { return usual_format(data.config, slot); });
  impl->arena = allocate(layout, kWhere, placement);
  point_into_arena(*impl, layout);
  fill_random({layout, data.arena, seed, kWhere,
               [&](const MatrixSlot& slot, uint32_t group) {
                 return valid_lanes(data, slot, group);
               },
               [&](const MatrixSlot& slot) { return wanted_rms(data, slot); }});
  return Weights(std::move(impl));
}

}  // namespace mimo_rt
