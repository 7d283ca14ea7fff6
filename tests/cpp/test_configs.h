// Model configs for tests: the real ones, and small ones that each lack or bend one feature.
#pragma once

#include <mimo_rt/config.h>
#include <mimo_rt/draft.h>

#include <algorithm>
#include <string>
#include <vector>

namespace test_configs {

using mimo_rt::DraftConfig;
using mimo_rt::LayerConfig;
using mimo_rt::ModelConfig;

/// Attention of one layer kind.
struct Heads {
  uint32_t num_q_heads, num_kv_heads, qk_head_dim, v_head_dim, rotary_dim;
};

inline LayerConfig make_layer(const Heads& heads, bool is_moe, uint32_t window_tokens, bool has_sink) {
  LayerConfig layer;
  layer.is_moe = is_moe;
  layer.has_sink = has_sink;
  layer.window_tokens = window_tokens;
  layer.num_q_heads = heads.num_q_heads;
  layer.num_kv_heads = heads.num_kv_heads;
  layer.qk_head_dim = heads.qk_head_dim;
  layer.v_head_dim = heads.v_head_dim;
  layer.rotary_dim = heads.rotary_dim;
  layer.rope_theta = window_tokens ? 1e4 : 1e7;
  return layer;
}

inline void set_o_proj_unquantised(ModelConfig& config) {
  for (uint32_t l = 0; l < config.num_layers; ++l)
    config.ignored_layers.insert("model.layers." + std::to_string(l) + ".self_attn.o_proj");
}

/// The target of MiMo-V2.5-Pro-FP4-DFlash; the same as tests/golden/mimo_v2_5_pro_fp4_config.json.
inline ModelConfig mimo_v2_5_pro_fp4() {
  ModelConfig config;
  config.model_type = "mimo_v2";
  config.hidden_size = 6144;
  config.num_layers = 70;
  config.vocab_size = 152576;
  config.intermediate_size = 16384;
  config.expert_intermediate_size = 2048;
  config.num_experts = 384;
  config.experts_per_token = 8;
  config.max_position_embeddings = 1048576;
  config.rms_norm_eps = 1e-5;
  config.value_scale = 0.612;
  config.qkv_layout = mimo_rt::QkvLayout::fused;
  config.qkv_chunks = 8;
  config.expert_format = mimo_rt::WeightFormat::mxfp4;
  config.linear_format = mimo_rt::WeightFormat::fp8_block;
  const std::vector<uint32_t> full = {0, 7, 15, 23, 31, 39, 47, 55, 62, 69};
  for (uint32_t l = 0; l < config.num_layers; ++l) {
    const bool is_full = std::find(full.begin(), full.end(), l) != full.end();
    config.layers.push_back(make_layer({128, 8, 192, 128, 64}, l != 0, is_full ? 0 : 128, !is_full));
  }
  config.eos_token_ids = {151645};
  set_o_proj_unquantised(config);
  return config;
}

/// MiMo-V2-Flash: window layers have twice the kv heads of full ones.
inline ModelConfig mimo_v2_flash() {
  ModelConfig config;
  config.model_type = "mimo_v2_flash";
  config.hidden_size = 4096;
  config.num_layers = 48;
  config.vocab_size = 152576;
  config.intermediate_size = 16384;
  config.expert_intermediate_size = 2048;
  config.num_experts = 256;
  config.experts_per_token = 8;
  config.max_position_embeddings = 262144;
  config.rms_norm_eps = 1e-5;
  config.value_scale = 0.707;
  config.expert_format = mimo_rt::WeightFormat::fp8_block;
  config.linear_format = mimo_rt::WeightFormat::fp8_block;
  for (uint32_t l = 0; l < config.num_layers; ++l) {
    const bool is_full = l == 0 || (l + 1) % 6 == 0;
    config.layers.push_back(
        make_layer({64, is_full ? 4u : 8u, 192, 128, 64}, l != 0, is_full ? 0 : 128, !is_full));
  }
  set_o_proj_unquantised(config);
  return config;
}

/// The slice that decode benchmarks use.
inline ModelConfig synthetic_slice() {
  ModelConfig config = mimo_v2_5_pro_fp4();
  config.hidden_size = 2048;
  config.num_layers = 16;
  config.vocab_size = 32768;
  config.intermediate_size = 4096;
  config.expert_intermediate_size = 1024;
  config.num_experts = 64;
  config.experts_per_token = 4;
  config.qkv_chunks = 4;
  config.layers.clear();
  config.ignored_layers.clear();
  for (uint32_t l = 0; l < config.num_layers; ++l)
    config.layers.push_back(make_layer({16, 4, 192, 128, 64}, l != 0, l % 8 ? 128 : 0, l % 8 != 0));
  set_o_proj_unquantised(config);
  return config;
}

/// All features on a few thousand weights: dense and MoE layers, window and full attention, ragged heads.
inline ModelConfig tiny() {
  ModelConfig config;
  config.model_type = "mimo_v2";
  config.hidden_size = 48;
  config.num_layers = 3;
  config.vocab_size = 80;
  config.intermediate_size = 64;
  config.expert_intermediate_size = 48;
  config.num_experts = 6;
  config.experts_per_token = 2;
  config.max_position_embeddings = 512;
  config.rms_norm_eps = 1e-5;
  config.layers = {make_layer({4, 2, 24, 16, 8}, false, 0, false), make_layer({4, 4, 24, 16, 8}, true, 16, true),
                   make_layer({4, 1, 24, 16, 8}, true, 0, false)};
  return config;
}

inline ModelConfig tiny_all_dense() {
  ModelConfig config = tiny();
  config.num_experts = config.experts_per_token = config.expert_intermediate_size = 0;
  for (LayerConfig& layer : config.layers) layer.is_moe = false;
  return config;
}

/// No dense layer and no dense width.
inline ModelConfig tiny_all_moe() {
  ModelConfig config = tiny();
  config.intermediate_size = 0;
  for (LayerConfig& layer : config.layers) layer.is_moe = true;
  return config;
}

inline ModelConfig tiny_full_attention_no_sinks() {
  ModelConfig config = tiny();
  for (LayerConfig& layer : config.layers) layer.window_tokens = 0, layer.has_sink = false;
  return config;
}

/// One layer, tied embeddings, no width a multiple of 16, rotary on the whole head, all experts active.
inline ModelConfig tiny_ragged_tied() {
  ModelConfig config = tiny();
  config.hidden_size = 40;
  config.num_layers = 1;
  config.vocab_size = 75;
  config.expert_intermediate_size = 24;
  config.num_experts = config.experts_per_token = 3;
  config.tie_word_embeddings = true;
  config.layers = {make_layer({3, 3, 20, 10, 20}, true, 0, false)};
  return config;
}

/// The shape of SmolLM2-135M cut into experts of which all are active.
inline ModelConfig smollm2_split() {
  ModelConfig config = mimo_v2_5_pro_fp4();
  config.hidden_size = 576;
  config.num_layers = 30;
  config.vocab_size = 49152;
  config.intermediate_size = 1536;
  config.expert_intermediate_size = 192;
  config.num_experts = config.experts_per_token = 8;
  config.qkv_chunks = 3;
  config.layers.assign(config.num_layers, make_layer({9, 3, 64, 64, 64}, true, 0, false));
  config.ignored_layers.clear();
  set_o_proj_unquantised(config);
  return config;
}

/// A draft of `num_layers` equal layers for `target`, with Qwen3's conventions.
inline DraftConfig make_draft(const ModelConfig& target, const Heads& heads, uint32_t num_layers, uint32_t block_size,
                              uint32_t window_tokens, std::vector<uint32_t> target_layer_ids) {
  DraftConfig draft;
  draft.hidden_size = target.hidden_size;
  draft.num_layers = num_layers;
  draft.intermediate_size = target.intermediate_size ? target.intermediate_size : 2 * target.hidden_size;
  draft.num_q_heads = heads.num_q_heads;
  draft.num_kv_heads = heads.num_kv_heads;
  draft.qk_head_dim = heads.qk_head_dim;
  draft.v_head_dim = heads.v_head_dim;
  draft.rotary_dim = heads.rotary_dim;
  draft.rope_theta = 1e4;
  draft.rms_norm_eps = 1e-5;
  draft.has_qk_norm = true;
  draft.block_size = block_size;
  draft.mask_token_id = static_cast<int32_t>(target.vocab_size) - 1;
  draft.num_target_layers = target.num_layers;
  draft.max_position_embeddings = target.max_position_embeddings;
  draft.window_tokens.assign(num_layers, window_tokens);
  draft.target_layer_ids = std::move(target_layer_ids);
  return draft;
}

/// The draft of MiMo-V2.5-Pro-FP4-DFlash.
inline DraftConfig mimo_v2_5_pro_draft() {
  DraftConfig draft =
      make_draft(mimo_v2_5_pro_fp4(), {128, 8, 128, 128, 64}, 5, 8, 1024, {0, 15, 31, 47, 69});
  draft.value_scale = 0.612;
  draft.has_sink = true;
  draft.mask_token_id = 151669;
  draft.max_position_embeddings = 262144;
  return draft;
}

/// For any of tiny_configs(): heads of unequal size, part of the vocabulary, the last layer and the first captured, in
/// that order.
inline DraftConfig tiny_draft(const ModelConfig& target, uint32_t block_size = 4) {
  std::vector<uint32_t> ids = {target.num_layers - 1};
  if (target.num_layers > 1) ids.push_back(0);
  DraftConfig draft = make_draft(target, {4, 2, 32, 16, 8}, 2, block_size, 16, ids);
  draft.window_tokens[1] = 0;
  draft.vocab_size = target.vocab_size;
  draft.draft_vocab_size = target.vocab_size / 2 + 1;
  return draft;
}

struct NamedConfig {
  std::string name;
  ModelConfig config;
};

inline std::vector<NamedConfig> tiny_configs() {
  return {{"tiny", tiny()},
          {"tiny_all_dense", tiny_all_dense()},
          {"tiny_all_moe", tiny_all_moe()},
          {"tiny_full_attention_no_sinks", tiny_full_attention_no_sinks()},
          {"tiny_ragged_tied", tiny_ragged_tied()}};
}

inline std::vector<NamedConfig> all_configs() {
  std::vector<NamedConfig> configs = tiny_configs();
  configs.push_back({"smollm2_split", smollm2_split()});
  configs.push_back({"synthetic_slice", synthetic_slice()});
  configs.push_back({"mimo_v2_flash", mimo_v2_flash()});
  configs.push_back({"mimo_v2_5_pro_fp4", mimo_v2_5_pro_fp4()});
  return configs;
}

}  // namespace test_configs
