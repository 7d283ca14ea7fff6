// Counts the bytes that a step reads: the denominator of every speed claim.
#include "engine/engine_impl.h"

namespace mimo_rt {

WeightBytes count_weight_bytes(const Weights& weights, const DraftWeights* draft) {
  const ModelConfig& config = weights.config();
  const uint64_t norm_bytes = sizeof(float) * uint64_t{config.hidden_size};
  WeightBytes bytes;
  bytes.total = weights.packed_bytes();
  bytes.dense_per_step = weights.lm_head().bytes() + norm_bytes;
  for (uint32_t i = 0; i < config.num_layers; ++i) {
    const LayerWeights& layer = weights.layer(i);
    bytes.dense_per_step += layer.qkv.bytes() + layer.o_proj.bytes() + 2 * norm_bytes;
    if (layer.sink_logits) bytes.dense_per_step += sizeof(float) * config.layers[i].num_q_heads;
    if (!config.layers[i].is_moe) {
      bytes.dense_per_step += layer.gate_up.bytes() + layer.down.bytes();
      continue;
    }
    bytes.dense_per_step += layer.router.bytes();
    if (layer.router_bias) bytes.dense_per_step += sizeof(float) * config.num_experts;
    bytes.per_expert = layer.expert_gate_up[0].bytes() + layer.expert_down[0].bytes();
  }
  if (draft) {
    bytes.total += draft->packed_bytes();
    bytes.per_draft = draft->packed_bytes();
    if (!draft->vocab_ids()) bytes.per_draft += weights.lm_head().bytes();
  }
  return bytes;
}

WeightBytes count_weight_bytes(const CudaWeights& weights, const CudaDraftWeights* draft, const ModelConfig& config) {
  const uint64_t norm_bytes = sizeof(float) * uint64_t{config.hidden_size};
  const auto table_bytes = [](const CudaTable& table) { return uint64_t{table.rows} * table.k * dtype_bits(table.dtype) / 8; };
  WeightBytes bytes;
  bytes.total = weights.image().num_bytes;
  bytes.dense_per_step = weights.lm_head().shape.bytes() + norm_bytes;
  for (uint32_t i = 0; i < config.num_layers; ++i) {
    const CudaLayerWeights& layer = weights.layer(i);
    bytes.dense_per_step += layer.qkv.shape.bytes() + layer.o_proj.shape.bytes() + 2 * norm_bytes;
    if (layer.config.has_sink) bytes.dense_per_step += sizeof(float) * layer.config.num_q_heads;
    if (!layer.config.is_moe) {
      bytes.dense_per_step += layer.gate_up.shape.bytes() + layer.down.shape.bytes();
      continue;
    }
    bytes.dense_per_step += table_bytes(layer.router) + sizeof(float) * config.num_experts;
    bytes.per_expert = layer.expert_gate_up.shape.bytes() + layer.expert_down.shape.bytes();
  }
  if (draft) {
    bytes.total += draft->image().num_bytes;
    bytes.per_draft = draft->image().num_bytes;
    if (!draft->lm_head()) bytes.per_draft += weights.lm_head().shape.bytes();
  }
  return bytes;
}

}  // namespace mimo_rt
