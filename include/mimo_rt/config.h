// What config.json says about a model, as plain values. Nothing about the architecture is assumed elsewhere.
#pragma once

#include <mimo_rt/api.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace mimo_rt {

/// How one decoder layer is built.
struct LayerConfig {
  bool is_moe = false;           ///< routed experts instead of a dense MLP
  bool has_sink = false;         ///< one `sink_logit` per query head joins the softmax denominator
  uint32_t window_tokens = 0;    ///< keys a query may see including itself; 0 = unlimited (full attention)
  uint32_t num_q_heads = 0;
  uint32_t num_kv_heads = 0;     ///< divides num_q_heads
  uint32_t qk_head_dim = 0;
  uint32_t v_head_dim = 0;
  uint32_t rotary_dim = 0;       ///< leading elements of a q/k head that rotate; even, <= qk_head_dim
  double rope_theta = 0.0;

  uint32_t q_per_kv() const { return num_q_heads / num_kv_heads; }
};

/// Where q, k and v lie on disk.
enum class QkvLayout : uint8_t {
  split,  ///< q_proj, k_proj, v_proj
  fused,  ///< qkv_proj: `qkv_chunks` chunks of [Q_t | K_t | V_t]; FP8 scale rows are padded per chunk
};

/// How the weights of one group are stored on disk.
enum class WeightFormat : uint8_t {
  plain,      ///< BF16, F16 or F32 tensor `weight`
  fp8_block,  ///< F8_E4M3 `weight` + F32 `weight_scale_inv`, one scale per 128x128 block
  mxfp4,      ///< U8 `weight` (two E2M1 codes, low nibble first) + U8 `weight_scale` (E8M0 per 32 along K)
};

/// A validated model description. Source of the field names: docs of `ModelConfig::from_json`.
struct ModelConfig {
  std::string model_type;  ///< "mimo_v2" or "mimo_v2_flash"
  uint32_t hidden_size = 0;
  uint32_t num_layers = 0;
  uint32_t vocab_size = 0;
  uint32_t intermediate_size = 0;         ///< dense MLP width
  uint32_t expert_intermediate_size = 0;  ///< width of one expert; 0 when no layer is MoE
  uint32_t num_experts = 0;
  uint32_t experts_per_token = 0;
  uint32_t max_position_embeddings = 0;   ///< tokens
  double rms_norm_eps = 0.0;
  double value_scale = 1.0;               ///< multiplies V before it enters the KV cache
  double routed_scaling_factor = 1.0;
  bool norm_topk_prob = true;
  bool tie_word_embeddings = false;

  QkvLayout qkv_layout = QkvLayout::split;
  uint32_t qkv_chunks = 1;                ///< chunks of the fused tensor = `num_key_value_heads` of the config
  WeightFormat expert_format = WeightFormat::plain;
  WeightFormat linear_format = WeightFormat::plain;  ///< qkv, dense MLP (o_proj: see ignored_layers)
  uint32_t fp8_block_rows = 128, fp8_block_cols = 128;
  /// Module names kept unquantised, e.g. "model.layers.0.self_attn.o_proj"; at most 8192 from a file. A set: it is
  /// looked up for every module of a checkpoint.
  std::set<std::string, std::less<>> ignored_layers;

  std::vector<LayerConfig> layers;        ///< [num_layers]
  std::vector<int32_t> eos_token_ids;     ///< ascending; the engine ignores those beyond vocab_size

  /// Parses config.json. `window_tokens_override`: 128-vs-129 knob, 0 = what the config says (`sliding_window`).
  /// Reads the dialects of the vendor and of transformers' port (layer_types, rope_parameters).
  /// @throws Error{bad_format} naming the field, what was expected and what came; Error{unsupported_shape} for a
  ///         valid field whose value this library does not compute (group-limited routing, biases, scaled RoPE).
  MIMO_RT_API static ModelConfig from_json(std::string_view json, std::string_view source_name,
                                           uint32_t window_tokens_override = 0);
  /// Reads `<directory>/config.json`, and adds the `eos_token_id` of generation_config.json where there is one,
  /// as a published config.json may have none. At most 1 MiB each.
  MIMO_RT_API static ModelConfig from_directory(const std::filesystem::path& directory,
                                                uint32_t window_tokens_override = 0);
  /// How a linear module ("model.layers.3.self_attn.o_proj") is stored: `expert_format` or `linear_format`, but `plain`
  /// where an entry of `ignored_layers` is its name, a parent's, or the last parts of its name.
  MIMO_RT_API WeightFormat format_of(std::string_view module_name) const;
};

}  // namespace mimo_rt
