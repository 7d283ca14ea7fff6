// Tables of Hugging Face config.json fields: the model's here, the draft's in draft_config.cpp. No other file spells
// their names.
#pragma once

#include <mimo_rt/config.h>
#include <mimo_rt/error.h>

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace mimo_rt {

inline constexpr uint64_t kMaxExpertsOfModel = 1 << 18;  ///< in all layers: bounds the tables made from a config

/// Whether every one of the `chunks` of a fused qkv tensor has the same number of the layer's heads.
inline bool fits_chunks(const LayerConfig& layer, uint32_t chunks) {
  return layer.num_q_heads % chunks == 0 && layer.num_kv_heads % chunks == 0;
}

/// A list of integers, or one integer that stands for a rule (`scalar`).
struct IntList {
  std::vector<int64_t> values;
  bool scalar = false;
  bool operator==(const IntList&) const = default;
};

using StringList = std::vector<std::string>;

/// config.json as it is written, a model's or a draft's; an empty member was absent or null. Values here are the
/// defaults.
struct RawConfig {
  template <typename T>
  using Maybe = std::optional<T>;

  Maybe<std::string> model_type;
  Maybe<uint32_t> hidden_size, num_layers, vocab_size, intermediate_size, max_position_embeddings;
  Maybe<double> rms_norm_eps;
  Maybe<bool> tie_word_embeddings = false;
  Maybe<std::string> hidden_act = "silu";
  Maybe<IntList> eos_token_ids;

  Maybe<uint32_t> num_q_heads, num_kv_heads, head_dim, v_head_dim;
  Maybe<uint32_t> swa_num_q_heads, swa_num_kv_heads, swa_head_dim, swa_v_head_dim;
  Maybe<double> rope_theta, swa_rope_theta, partial_rotary, swa_partial_rotary;
  Maybe<std::string> rope_type, swa_rope_type, rope_scaling_type;
  Maybe<uint32_t> sliding_window, sliding_window_size;
  Maybe<double> value_scale;
  Maybe<bool> attention_bias = false, use_qk_norm = false;
  Maybe<bool> swa_sinks, full_sinks = false;
  Maybe<std::string> qkv_layout = "split";
  Maybe<IntList> hybrid_layer_pattern;
  Maybe<uint32_t> hybrid_block_size;
  Maybe<StringList> layer_types, mlp_layer_types;

  Maybe<IntList> moe_layer_freq;
  Maybe<uint32_t> first_k_dense = 0;
  Maybe<uint32_t> num_experts, experts_per_token, expert_intermediate_size;
  Maybe<uint32_t> num_shared_experts = 0, num_groups = 1, topk_groups = 1;
  Maybe<std::string> scoring_func = "sigmoid", topk_method = "noaux_tc", router_dtype = "float32";
  Maybe<bool> norm_topk_prob = true;
  Maybe<double> routed_scaling_factor = 1.0;

  Maybe<std::string> quant_method, quant_fmt, activation_scheme, store_dtype;
  Maybe<IntList> weight_block_size;
  Maybe<uint32_t> mxfp4_block_size;
  Maybe<StringList> ignored_layers;

  // of a draft only
  Maybe<uint32_t> block_size, mask_token_id, num_target_layers, draft_window, first_window_layer;
  Maybe<uint32_t> draft_vocab_size;
  Maybe<IntList> target_layer_ids;
  Maybe<bool> use_draft_window, use_sliding_window, has_sinks, has_qk_norm = true;
  Maybe<bool> is_causal, is_mask_per_position = false;
  Maybe<double> input_scale, logit_scale, logit_cap;
};

/// When a field must be there.
enum class Need : uint8_t { required, optional, with_dense, with_moe, with_window, with_quant };

struct ConfigField {
  using Member = std::variant<
      std::optional<uint32_t> RawConfig::*, std::optional<double> RawConfig::*,
      std::optional<bool> RawConfig::*, std::optional<std::string> RawConfig::*,
      std::optional<IntList> RawConfig::*, std::optional<StringList> RawConfig::*>;

  /// Spellings, "a.b" for a nested one; where several are present they must agree.
  std::array<const char*, 4> keys;
  Member member;
  Need need;
  double min = 0, max = 0;        ///< of a number, or of each number of a list
  const char* allowed = nullptr;  ///< "a|b": strings (also in lists) and booleans; nullptr: any
  ErrorCode code = ErrorCode::bad_format;  ///< of a value outside the range
  bool scalar_ok = false;         ///< a list that may also be one integer
};

std::span<const ConfigField> config_fields();
/// Those of generation_config.json that the core reads.
std::span<const ConfigField> generation_fields();

/// Fails with "<source>: <key>: expected <what the field allows>, got <got>".
[[noreturn]] void fail_field(const ConfigField& field, ErrorCode code, std::string_view source,
                             std::string_view got, const char* where = "ModelConfig.from_json");

/// Whether the member that `field` fills has a value.
bool has_value(const ConfigField& field, const RawConfig& raw);

/// The fields of one kind of config.json, and the public operation that reads it.
struct ConfigTable {
  std::span<const ConfigField> fields;
  const char* where;
};

/// Parses JSON text through a table (here: the model's); knows types and ranges, not how fields relate.
/// @throws Error{bad_format, unsupported_shape}
RawConfig parse_raw_config(std::string_view json, std::string_view source);
RawConfig parse_raw_config(std::string_view json, std::string_view source,
                           const ConfigTable& table);

}  // namespace mimo_rt
