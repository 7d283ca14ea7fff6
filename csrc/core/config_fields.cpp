#include "core/config_fields.h"

#include "core/checks.h"
#include "core/text.h"

#include <sstream>

namespace mimo_rt {
namespace {

using Raw = RawConfig;
constexpr ErrorCode kUnsupported = ErrorCode::unsupported_shape;
constexpr double kMaxHeads = 16384, kMaxHeadDim = 4096, kMaxWidth = 1 << 22, kMaxTokens = 1 << 30;
constexpr double kMaxToken = 2147483647;  // token ids are int32_t

const ConfigField kEndTokens = {{"eos_token_id"}, &Raw::eos_token_ids, Need::optional, 0, kMaxToken,
                                nullptr, ErrorCode::bad_format, true};

// clang-format off
const ConfigField kFields[] = {
  {{"model_type"}, &Raw::model_type, Need::required, 0, 0, "mimo_v2|mimo_v2_flash", kUnsupported},
  {{"hidden_size"}, &Raw::hidden_size, Need::required, 1, 1 << 20},
  {{"num_hidden_layers"}, &Raw::num_layers, Need::required, 1, 4096},
  {{"vocab_size"}, &Raw::vocab_size, Need::required, 1, 1 << 24},
  {{"intermediate_size"}, &Raw::intermediate_size, Need::with_dense, 1, kMaxWidth},
  {{"max_position_embeddings"}, &Raw::max_position_embeddings, Need::required, 1, kMaxTokens},
  {{"rms_norm_eps", "layernorm_epsilon"}, &Raw::rms_norm_eps, Need::required, 1e-30, 1},
  {{"tie_word_embeddings"}, &Raw::tie_word_embeddings, Need::optional},
  {{"hidden_act"}, &Raw::hidden_act, Need::optional, 0, 0, "silu", kUnsupported},
  kEndTokens,

  {{"num_attention_heads"}, &Raw::num_q_heads, Need::required, 1, kMaxHeads},
  {{"num_key_value_heads"}, &Raw::num_kv_heads, Need::required, 1, kMaxHeads},
  {{"head_dim"}, &Raw::head_dim, Need::required, 2, kMaxHeadDim},
  {{"v_head_dim"}, &Raw::v_head_dim, Need::optional, 1, kMaxHeadDim},
  {{"swa_num_attention_heads"}, &Raw::swa_num_q_heads, Need::optional, 1, kMaxHeads},
  {{"swa_num_key_value_heads"}, &Raw::swa_num_kv_heads, Need::optional, 1, kMaxHeads},
  {{"swa_head_dim"}, &Raw::swa_head_dim, Need::optional, 2, kMaxHeadDim},
  {{"swa_v_head_dim"}, &Raw::swa_v_head_dim, Need::optional, 1, kMaxHeadDim},
  {{"rope_theta", "rope_parameters.rope_theta", "rope_parameters.full_attention.rope_theta"},
   &Raw::rope_theta, Need::required, 1, 1e15},
  {{"swa_rope_theta", "rope_parameters.sliding_attention.rope_theta"}, &Raw::swa_rope_theta,
   Need::with_window, 1, 1e15},
  {{"partial_rotary_factor", "rope_parameters.partial_rotary_factor",
    "rope_parameters.full_attention.partial_rotary_factor"}, &Raw::partial_rotary,
   Need::optional, 0, 1},
  {{"swa_partial_rotary_factor", "rope_parameters.sliding_attention.partial_rotary_factor"},
   &Raw::swa_partial_rotary, Need::optional, 0, 1},
  {{"rope_parameters.rope_type", "rope_parameters.type", "rope_parameters.full_attention.rope_type",
    "rope_parameters.full_attention.type"}, &Raw::rope_type, Need::optional, 0, 0, "default",
   kUnsupported},
  {{"rope_parameters.sliding_attention.rope_type", "rope_parameters.sliding_attention.type"},
   &Raw::swa_rope_type, Need::optional, 0, 0, "default", kUnsupported},
  {{"rope_scaling.rope_type", "rope_scaling.type"}, &Raw::rope_scaling_type, Need::optional, 0, 0,
   "default", kUnsupported},
  {{"sliding_window"}, &Raw::sliding_window, Need::with_window, 1, kMaxTokens},
  {{"sliding_window_size"}, &Raw::sliding_window_size, Need::optional, 1, kMaxTokens},
  {{"attention_value_scale"}, &Raw::value_scale, Need::optional, 1e-6, 1e6},
  {{"attention_bias"}, &Raw::attention_bias, Need::optional, 0, 0, "false", kUnsupported},
  {{"use_qk_norm"}, &Raw::use_qk_norm, Need::optional, 0, 0, "false", kUnsupported},
  {{"add_swa_attention_sink_bias"}, &Raw::swa_sinks, Need::optional},
  {{"add_full_attention_sink_bias"}, &Raw::full_sinks, Need::optional},
  {{"attention_projection_layout"}, &Raw::qkv_layout, Need::optional, 0, 0, "split|fused_qkv"},
  {{"hybrid_layer_pattern"}, &Raw::hybrid_layer_pattern, Need::optional, 0, 1},
  {{"hybrid_block_size"}, &Raw::hybrid_block_size, Need::optional, 1, 4096},
  {{"layer_types"}, &Raw::layer_types, Need::optional, 0, 0, "full_attention|sliding_attention"},
  {{"mlp_layer_types"}, &Raw::mlp_layer_types, Need::optional, 0, 0, "dense|sparse"},

  {{"moe_layer_freq"}, &Raw::moe_layer_freq, Need::optional, 0, 4096, nullptr,
   ErrorCode::bad_format, true},
  {{"first_k_dense_replace"}, &Raw::first_k_dense, Need::optional, 0, 4096},
  {{"n_routed_experts", "num_local_experts"}, &Raw::num_experts, Need::with_moe, 1, 65535},
  {{"num_experts_per_tok"}, &Raw::experts_per_token, Need::with_moe, 1, 65535},
  {{"moe_intermediate_size"}, &Raw::expert_intermediate_size, Need::with_moe, 1, kMaxWidth},
  {{"n_shared_experts"}, &Raw::num_shared_experts, Need::optional, 0, 0, nullptr, kUnsupported},
  {{"n_group"}, &Raw::num_groups, Need::optional, 1, 1, nullptr, kUnsupported},
  {{"topk_group"}, &Raw::topk_groups, Need::optional, 1, 1, nullptr, kUnsupported},
  {{"scoring_func"}, &Raw::scoring_func, Need::optional, 0, 0, "sigmoid", kUnsupported},
  {{"topk_method"}, &Raw::topk_method, Need::optional, 0, 0, "noaux_tc", kUnsupported},
  {{"moe_router_dtype"}, &Raw::router_dtype, Need::optional, 0, 0, "float32|bfloat16"},
  {{"norm_topk_prob"}, &Raw::norm_topk_prob, Need::optional},
  {{"routed_scaling_factor"}, &Raw::routed_scaling_factor, Need::optional, 1e-6, 1e6},

  {{"quantization_config.quant_method"}, &Raw::quant_method, Need::with_quant, 0, 0, "fp8",
   kUnsupported},
  {{"quantization_config.fmt"}, &Raw::quant_fmt, Need::optional, 0, 0, "e4m3", kUnsupported},
  {{"quantization_config.activation_scheme"}, &Raw::activation_scheme, Need::optional, 0, 0,
   "dynamic", kUnsupported},
  {{"quantization_config.weight_block_size"}, &Raw::weight_block_size, Need::with_quant, 128, 128,
   nullptr, kUnsupported},
  {{"quantization_config.store_dtype"}, &Raw::store_dtype, Need::optional, 0, 0, "mxfp4|fp8",
   kUnsupported},
  {{"quantization_config.mxfp4_block_size"}, &Raw::mxfp4_block_size, Need::optional, 32, 32,
   nullptr, kUnsupported},
  {{"quantization_config.ignored_layers", "quantization_config.modules_to_not_convert"},
   &Raw::ignored_layers, Need::optional},
};
// clang-format on

std::string number_range(const ConfigField& field) {
  std::ostringstream out;
  out.precision(12);
  out << '[' << field.min << ", " << field.max << ']';
  return out.str();
}

std::string describe(const ConfigField& field) {
  const std::string choice = field.allowed ? concat(" (", field.allowed, ")") : "";
  const std::string numbers = field.max > 0 || field.min > 0 ? " in " + number_range(field) : "";
  switch (field.member.index()) {
    case 0: return "an integer in " + number_range(field);
    case 1: return "a number in " + number_range(field);
    case 2: return "true or false" + choice;
    case 3: return "a string" + choice;
    case 4: return (field.scalar_ok ? "an integer or a list of integers" : "a list of integers") +
                   numbers;
    default: return "a list of strings" + choice;
  }
}

}  // namespace

std::span<const ConfigField> config_fields() { return kFields; }
std::span<const ConfigField> generation_fields() { return {&kEndTokens, 1}; }

void fail_field(const ConfigField& field, ErrorCode code, std::string_view source,
                std::string_view got, const char* where) {
  fail(code, where, source, ": ", field.keys[0], ": expected ", describe(field), ", got ", got);
}

bool has_value(const ConfigField& field, const RawConfig& raw) {
  return std::visit([&](auto member) { return (raw.*member).has_value(); }, field.member);
}

}  // namespace mimo_rt
