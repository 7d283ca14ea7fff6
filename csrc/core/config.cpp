// RawConfig -> ModelConfig: how the fields of config.json relate to each other.
#include <mimo_rt/config.h>

#include "core/checks.h"
#include "core/config_fields.h"
#include "core/file.h"

#include <algorithm>
#include <utility>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "ModelConfig.from_json";
constexpr uint64_t kMaxConfigBytes = 1 << 20;
constexpr uint64_t kMaxRows = 1 << 30;  // of one matrix: row indices are uint32_t everywhere
constexpr size_t kMaxIgnoredLayers = 8192;

void add_end_tokens(const RawConfig& raw, ModelConfig& config) {
  if (!raw.eos_token_ids) return;
  auto& ids = config.eos_token_ids;
  for (const int64_t id : raw.eos_token_ids->values) ids.push_back(static_cast<int32_t>(id));
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
}

/// One value per layer.
struct LayerFlags {
  std::vector<bool> is_window, is_moe;
};

class Builder {
 public:
  Builder(const RawConfig& raw, std::string_view source, uint32_t window_tokens_override)
      : raw_(raw), source_(source), window_override_(window_tokens_override) {}

  ModelConfig build();

 private:
  template <typename... Args>
  [[noreturn]] void bad(const Args&... args) const {
    fail(ErrorCode::bad_format, kWhere, source_, ": ", args...);
  }
  void require(Need need) const {
    for (const ConfigField& field : config_fields())
      if (field.need == need && !has_value(field, raw_))
        fail_field(field, ErrorCode::bad_format, source_, "nothing: the field is missing");
  }
  // The transformers port derives what the vendor's config spells out.
  bool is_port() const { return *raw_.model_type == "mimo_v2_flash" && raw_.layer_types; }

  void check_length(const char* key, size_t length) const;
  std::vector<bool> window_pattern() const;
  std::vector<bool> moe_pattern() const;
  uint32_t window_tokens() const;
  uint32_t rotary_dim(uint32_t head_dim, double factor, const char* key) const;
  LayerConfig full_layer() const;
  LayerConfig window_layer() const;
  void check_heads(const LayerConfig& layer, const char* prefix) const;
  void fill_moe(ModelConfig& config, uint64_t num_moe_layers) const;
  void fill_formats(ModelConfig& config, bool has_moe) const;

  const RawConfig& raw_;
  std::string_view source_;
  uint32_t window_override_;
};

void Builder::check_length(const char* key, size_t length) const {
  if (length != *raw_.num_layers)
    bad(key, ": expected num_hidden_layers (", *raw_.num_layers, ") entries, got ", length);
}

std::vector<bool> Builder::window_pattern() const {
  std::vector<bool> pattern;
  if (raw_.hybrid_layer_pattern) {
    check_length("hybrid_layer_pattern", raw_.hybrid_layer_pattern->values.size());
    for (const int64_t value : raw_.hybrid_layer_pattern->values) pattern.push_back(value == 1);
  }
  if (raw_.layer_types) {
    check_length("layer_types", raw_.layer_types->size());
    std::vector<bool> types;
    for (const std::string& type : *raw_.layer_types) types.push_back(type == "sliding_attention");
    if (!pattern.empty() && pattern != types)
      bad("layer_types: expected the layers of hybrid_layer_pattern, got other ones");
    pattern = std::move(types);
  }
  if (!pattern.empty()) return pattern;
  if (!raw_.hybrid_block_size)
    bad("hybrid_layer_pattern: expected a list of 0 (full) and 1 (window) per layer, got nothing: ",
        "the field is missing");
  // The last layer of every block attends to everything.
  for (uint32_t i = 0; i < *raw_.num_layers; ++i)
    pattern.push_back((i + 1) % *raw_.hybrid_block_size != 0);
  return pattern;
}

std::vector<bool> Builder::moe_pattern() const {
  std::vector<bool> pattern;
  if (raw_.mlp_layer_types) {
    check_length("mlp_layer_types", raw_.mlp_layer_types->size());
    for (const std::string& type : *raw_.mlp_layer_types) pattern.push_back(type == "sparse");
  }
  if (!raw_.moe_layer_freq) {
    if (pattern.empty())
      bad("moe_layer_freq: expected a list of 0 (dense) and 1 (experts) per layer or an integer, ",
          "got nothing: the field is missing");
    return pattern;
  }
  const IntList& freq = *raw_.moe_layer_freq;
  if (!freq.scalar) check_length("moe_layer_freq", freq.values.size());
  for (uint32_t i = 0; i < *raw_.num_layers; ++i) {
    const int64_t value = freq.scalar ? freq.values[0] : freq.values[i];
    if (!freq.scalar && value > 1)
      bad("moe_layer_freq[", i, "]: expected 0 or 1, got ", value);
    // The integer form: every n-th layer after the first dense ones; 0: none.
    const bool is_moe = freq.scalar ? value > 0 && i >= *raw_.first_k_dense && i % value == 0
                                    : value == 1;
    if (raw_.mlp_layer_types && pattern[i] != is_moe)
      bad("mlp_layer_types[", i, "]: expected the kind that moe_layer_freq gives, got another");
    if (!raw_.mlp_layer_types) pattern.push_back(is_moe);
  }
  return pattern;
}

uint32_t Builder::window_tokens() const {
  // Both dialects count the keys a query sees including itself in `sliding_window`; the port writes
  // `sliding_window_size` + 1 there, the vendor writes the same number in both.
  if (raw_.sliding_window_size) {
    const uint32_t expected = *raw_.sliding_window_size + (is_port() ? 1 : 0);
    if (*raw_.sliding_window != expected)
      bad("sliding_window: expected ", expected, " to agree with sliding_window_size, got ",
          *raw_.sliding_window);
  }
  return window_override_ ? window_override_ : *raw_.sliding_window;
}

uint32_t Builder::rotary_dim(uint32_t head_dim, double factor, const char* key) const {
  const auto dim = static_cast<uint32_t>(head_dim * factor);  // truncates, as the vendor's int()
  if (dim < 2 || dim % 2 != 0)
    bad(key, ": expected an even number of rotating elements of ", head_dim, ", got ", dim,
        " from ", factor);
  return dim;
}

LayerConfig Builder::full_layer() const {
  LayerConfig layer;
  layer.has_sink = *raw_.full_sinks;
  layer.num_q_heads = *raw_.num_q_heads;
  layer.num_kv_heads = *raw_.num_kv_heads;
  layer.qk_head_dim = *raw_.head_dim;
  layer.v_head_dim = raw_.v_head_dim.value_or(layer.qk_head_dim);
  layer.rotary_dim = rotary_dim(layer.qk_head_dim,
                                raw_.partial_rotary.value_or(is_port() ? 0.334 : 1.0),
                                "partial_rotary_factor");
  layer.rope_theta = *raw_.rope_theta;
  check_heads(layer, "");
  return layer;
}

LayerConfig Builder::window_layer() const {
  const LayerConfig full = full_layer();
  LayerConfig layer;
  layer.has_sink = raw_.swa_sinks.value_or(is_port());
  layer.window_tokens = window_tokens();
  layer.num_q_heads = raw_.swa_num_q_heads.value_or(full.num_q_heads);
  layer.num_kv_heads = raw_.swa_num_kv_heads.value_or(full.num_kv_heads * (is_port() ? 2 : 1));
  layer.qk_head_dim = raw_.swa_head_dim.value_or(full.qk_head_dim);
  layer.v_head_dim = raw_.swa_v_head_dim.value_or(full.v_head_dim);
  const double full_factor = raw_.partial_rotary.value_or(is_port() ? 0.334 : 1.0);
  layer.rotary_dim = rotary_dim(layer.qk_head_dim, raw_.swa_partial_rotary.value_or(full_factor),
                                "partial_rotary_factor of window layers");
  layer.rope_theta = *raw_.swa_rope_theta;
  check_heads(layer, "swa_");
  return layer;
}

void Builder::check_heads(const LayerConfig& layer, const char* prefix) const {
  if (layer.num_q_heads % layer.num_kv_heads != 0)
    bad(prefix, "num_attention_heads: expected a multiple of ", prefix, "num_key_value_heads (",
        layer.num_kv_heads, "), got ", layer.num_q_heads);
  const uint64_t q_rows = uint64_t{layer.num_q_heads} * layer.qk_head_dim;
  const uint64_t kv_rows =
      uint64_t{layer.num_kv_heads} * (uint64_t{layer.qk_head_dim} + layer.v_head_dim);
  const uint64_t o_cols = uint64_t{layer.num_q_heads} * layer.v_head_dim;
  if (q_rows + kv_rows > kMaxRows || o_cols > kMaxRows)
    bad(prefix, "num_attention_heads: expected at most ", kMaxRows, " qkv rows, got ",
        q_rows + kv_rows);
  const uint32_t chunks = *raw_.num_kv_heads;
  if (*raw_.qkv_layout == "fused_qkv" && !fits_chunks(layer, chunks))
    bad(prefix, "num_attention_heads: expected multiples of num_key_value_heads (", chunks,
        ", the chunks of the fused qkv), got ", layer.num_q_heads, " query and ",
        layer.num_kv_heads, " key heads");
}

void Builder::fill_moe(ModelConfig& config, uint64_t num_moe_layers) const {
  require(Need::with_moe);
  if (*raw_.num_experts * num_moe_layers > kMaxExpertsOfModel)
    bad("n_routed_experts: expected at most ", kMaxExpertsOfModel, " experts in all layers, got ",
        *raw_.num_experts * num_moe_layers);
  config.num_experts = *raw_.num_experts;
  config.experts_per_token = *raw_.experts_per_token;
  config.expert_intermediate_size = *raw_.expert_intermediate_size;
  if (config.experts_per_token > config.num_experts)
    bad("num_experts_per_tok: expected at most n_routed_experts (", config.num_experts, "), got ",
        config.experts_per_token);
}

void Builder::fill_formats(ModelConfig& config, bool has_moe) const {
  if (*raw_.qkv_layout == "fused_qkv") {
    config.qkv_layout = QkvLayout::fused;
    config.qkv_chunks = *raw_.num_kv_heads;
  }
  if (!raw_.quant_method) return;
  require(Need::with_quant);
  if (raw_.weight_block_size->values.size() != 2)
    bad("quantization_config.weight_block_size: expected 2 entries, got ",
        raw_.weight_block_size->values.size());
  config.fp8_block_rows = static_cast<uint32_t>(raw_.weight_block_size->values[0]);
  config.fp8_block_cols = static_cast<uint32_t>(raw_.weight_block_size->values[1]);
  config.linear_format = WeightFormat::fp8_block;
  if (raw_.ignored_layers) {
    if (raw_.ignored_layers->size() > kMaxIgnoredLayers)
      bad("quantization_config.ignored_layers: expected at most ", kMaxIgnoredLayers,
          " entries, got ", raw_.ignored_layers->size());
    config.ignored_layers = {raw_.ignored_layers->begin(), raw_.ignored_layers->end()};
  }
  if (!has_moe) return;
  config.expert_format = WeightFormat::fp8_block;
  if (raw_.store_dtype.value_or("") != "mxfp4") return;
  config.expert_format = WeightFormat::mxfp4;
  if (config.hidden_size % 32 != 0 || config.expert_intermediate_size % 32 != 0)
    bad("store_dtype mxfp4: expected hidden_size and moe_intermediate_size to be multiples of 32, ",
        "got ", config.hidden_size, " and ", config.expert_intermediate_size);
}

ModelConfig Builder::build() {
  ModelConfig config;
  config.model_type = *raw_.model_type;
  config.hidden_size = *raw_.hidden_size;
  config.num_layers = *raw_.num_layers;
  config.vocab_size = *raw_.vocab_size;
  config.max_position_embeddings = *raw_.max_position_embeddings;
  config.rms_norm_eps = *raw_.rms_norm_eps;
  config.value_scale = raw_.value_scale.value_or(1.0);
  config.routed_scaling_factor = *raw_.routed_scaling_factor;
  config.norm_topk_prob = *raw_.norm_topk_prob;
  config.tie_word_embeddings = *raw_.tie_word_embeddings;
  add_end_tokens(raw_, config);

  const LayerFlags flags{window_pattern(), moe_pattern()};
  const auto any = [](const std::vector<bool>& list, bool value) {
    return std::find(list.begin(), list.end(), value) != list.end();
  };
  const bool has_moe = any(flags.is_moe, true), has_window = any(flags.is_window, true);
  const auto num_moe = std::count(flags.is_moe.begin(), flags.is_moe.end(), true);
  if (has_moe) fill_moe(config, static_cast<uint64_t>(num_moe));
  if (any(flags.is_moe, false)) require(Need::with_dense);
  config.intermediate_size = raw_.intermediate_size.value_or(0);
  if (has_window) require(Need::with_window);
  fill_formats(config, has_moe);

  const LayerConfig full = full_layer();
  const LayerConfig window = has_window ? window_layer() : LayerConfig{};
  for (uint32_t i = 0; i < config.num_layers; ++i) {
    config.layers.push_back(flags.is_window[i] ? window : full);
    config.layers.back().is_moe = flags.is_moe[i];
  }
  return config;
}

}  // namespace

ModelConfig ModelConfig::from_json(std::string_view json, std::string_view source_name,
                                   uint32_t window_tokens_override) {
  MIMO_RT_CHECK(window_tokens_override <= 1u << 30, invalid_argument, kWhere,
                "window_tokens_override: expected at most 2^30, got ", window_tokens_override);
  const RawConfig raw = parse_raw_config(json, source_name);
  return Builder(raw, source_name, window_tokens_override).build();
}

ModelConfig ModelConfig::from_directory(const std::filesystem::path& directory,
                                        uint32_t window_tokens_override) {
  constexpr const char* kHere = "ModelConfig.from_directory";
  constexpr const char* kGeneration = "generation_config.json";
  const std::string text = read_text_file(directory, "config.json", kMaxConfigBytes, kHere);
  ModelConfig config = from_json(text, "config.json", window_tokens_override);
  std::error_code error;
  const std::filesystem::file_status status = symlink_status(directory / kGeneration, error);
  if (status.type() == std::filesystem::file_type::not_found) return config;
  const std::string generation = read_text_file(directory, kGeneration, kMaxConfigBytes, kHere);
  add_end_tokens(parse_raw_config(generation, kGeneration, {generation_fields(), kHere}), config);
  return config;
}

WeightFormat ModelConfig::format_of(std::string_view module_name) const {
  const bool is_expert = module_name.find(".mlp.experts.") != std::string_view::npos;
  // Entries name a module, a parent of it ("model.layers.0"), or its last parts ("o_proj").
  bool ignored = ignored_layers.contains(module_name);
  for (size_t dot = module_name.find('.'); !ignored && dot != std::string_view::npos;
       dot = module_name.find('.', dot + 1))
    ignored = ignored_layers.contains(module_name.substr(0, dot)) ||
              ignored_layers.contains(module_name.substr(dot + 1));
  if (ignored) return WeightFormat::plain;
  return is_expert ? expert_format : linear_format;
}

}  // namespace mimo_rt
