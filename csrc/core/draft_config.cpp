// dflash/config.json -> DraftConfig. MiMo's dialect has its own fields in `dflash_config`; Qwen3's has none of them.
#include <mimo_rt/draft.h>

#include "core/checks.h"
#include "core/config_fields.h"
#include "core/file.h"
#include "core/text.h"

#include <algorithm>
#include <utility>

namespace mimo_rt {
namespace {

using Raw = RawConfig;
constexpr const char* kWhere = "DraftConfig.from_json";
constexpr ErrorCode kUnsupported = ErrorCode::unsupported_shape;
constexpr uint64_t kMaxConfigBytes = 1 << 20;
constexpr uint64_t kMaxRows = 1 << 30;  // of one matrix: row indices are uint32_t everywhere
constexpr double kMaxHeads = 16384, kMaxHeadDim = 4096, kMaxWidth = 1 << 22, kMaxTokens = 1 << 30;
constexpr double kMaxToken = 2147483647;  // token ids are int32_t
constexpr uint32_t kHeadDimMultiple = 16;
constexpr uint32_t kMaxPadding = 1024;  // of the target's vocabulary, that its draft need not state: MiMo's states 512 less
constexpr uint32_t kUsualFirstWindowLayer = 28;  // max_window_layers where a Qwen3 config leaves it out

// clang-format off
const ConfigField kFields[] = {
  {{"model_type"}, &Raw::model_type, Need::required, 0, 0, "qwen3", kUnsupported},
  {{"hidden_size"}, &Raw::hidden_size, Need::required, 1, 1 << 20},
  {{"num_hidden_layers"}, &Raw::num_layers, Need::required, 1, 256},
  {{"intermediate_size"}, &Raw::intermediate_size, Need::required, 1, kMaxWidth},
  {{"vocab_size"}, &Raw::vocab_size, Need::optional, 1, 1 << 24},
  {{"draft_vocab_size", "dflash_config.draft_vocab_size"}, &Raw::draft_vocab_size, Need::optional, 1,
   1 << 24},
  {{"max_position_embeddings"}, &Raw::max_position_embeddings, Need::optional, 1, kMaxTokens},
  {{"rms_norm_eps"}, &Raw::rms_norm_eps, Need::required, 1e-30, 1},
  {{"hidden_act"}, &Raw::hidden_act, Need::optional, 0, 0, "silu", kUnsupported},

  {{"num_attention_heads"}, &Raw::num_q_heads, Need::required, 1, kMaxHeads},
  {{"num_key_value_heads"}, &Raw::num_kv_heads, Need::required, 1, kMaxHeads},
  {{"head_dim"}, &Raw::head_dim, Need::required, 1, kMaxHeadDim},
  {{"v_head_dim", "dflash_config.v_head_dim"}, &Raw::v_head_dim, Need::optional, 1, kMaxHeadDim},
  {{"rope_theta", "rope_parameters.rope_theta"}, &Raw::rope_theta, Need::required, 1, 1e15},
  {{"partial_rotary_factor", "rope_parameters.partial_rotary_factor",
    "dflash_config.partial_rotary_factor"}, &Raw::partial_rotary, Need::optional, 0, 1},
  {{"rope_parameters.rope_type", "rope_parameters.type", "rope_parameters.full_attention.rope_type",
    "rope_parameters.full_attention.type"}, &Raw::rope_type, Need::optional, 0, 0, "default",
   kUnsupported},
  {{"rope_parameters.sliding_attention.rope_type", "rope_parameters.sliding_attention.type"},
   &Raw::swa_rope_type, Need::optional, 0, 0, "default", kUnsupported},
  {{"rope_scaling.rope_type", "rope_scaling.type"}, &Raw::rope_scaling_type, Need::optional, 0, 0,
   "default", kUnsupported},
  {{"attention_value_scale", "dflash_config.attention_value_scale"}, &Raw::value_scale,
   Need::optional, 1e-6, 1e6},
  {{"attention_sink_bias", "dflash_config.attention_sink_bias"}, &Raw::has_sinks, Need::optional},
  {{"attention_bias", "dflash_config.attention_bias"}, &Raw::attention_bias, Need::optional, 0, 0,
   "false", kUnsupported},
  {{"use_qk_norm", "dflash_config.use_qk_norm"}, &Raw::has_qk_norm, Need::optional},
  {{"is_causal", "dflash_config.is_causal"}, &Raw::is_causal, Need::optional, 0, 0, "false",
   kUnsupported},
  {{"input_embedding_scale", "dflash_config.input_embedding_scale"}, &Raw::input_scale,
   Need::optional, 1, 1, nullptr, kUnsupported},
  {{"output_multiplier", "dflash_config.output_multiplier"}, &Raw::logit_scale, Need::optional, 1,
   1, nullptr, kUnsupported},
  {{"final_logit_softcapping", "dflash_config.final_logit_softcapping"}, &Raw::logit_cap,
   Need::optional, 0, 0, nullptr, kUnsupported},

  {{"sliding_window"}, &Raw::sliding_window, Need::optional, 1, kMaxTokens},
  {{"use_sliding_window"}, &Raw::use_sliding_window, Need::optional},
  {{"max_window_layers"}, &Raw::first_window_layer, Need::optional, 0, 4096},
  {{"layer_types"}, &Raw::layer_types, Need::optional, 0, 0, "full_attention|sliding_attention"},
  {{"use_swa", "dflash_config.use_swa"}, &Raw::use_draft_window, Need::optional},
  {{"swa_window_size", "dflash_config.swa_window_size"}, &Raw::draft_window, Need::optional, 1,
   kMaxTokens},

  {{"block_size", "dflash_config.block_size"}, &Raw::block_size, Need::required, 1, kMaxTokens},
  {{"mask_token_id", "dflash_config.mask_token_id"}, &Raw::mask_token_id, Need::required, 0,
   kMaxToken},
  {{"per_position", "dflash_config.per_position"}, &Raw::is_mask_per_position, Need::optional, 0, 0,
   "false", kUnsupported},
  {{"target_layer_ids", "dflash_config.target_layer_ids"}, &Raw::target_layer_ids, Need::required,
   0, 4095},
  {{"num_target_layers", "dflash_config.num_target_layers"}, &Raw::num_target_layers,
   Need::optional, 1, 4096},
  {{"quantization_config.quant_method"}, &Raw::quant_method, Need::optional},
};
// clang-format on

class Builder {
 public:
  Builder(const RawConfig& raw, std::string_view source) : raw_(raw), source_(source) {}

  DraftConfig build() const;

 private:
  template <typename... Args>
  [[noreturn]] void bad(const Args&... args) const {
    fail(ErrorCode::bad_format, kWhere, source_, ": ", args...);
  }
  template <typename... Args>
  [[noreturn]] void unsupported(const Args&... args) const {
    fail(kUnsupported, kWhere, source_, ": ", args...);
  }

  // Any of these fields of MiMo's makes it MiMo's.
  bool is_qwen3() const {
    return !raw_.use_draft_window && !raw_.draft_window && !raw_.has_sinks && !raw_.v_head_dim &&
           !raw_.value_scale;
  }

  void check_heads(const DraftConfig& config) const;
  uint32_t rotary_dim(uint32_t head_dim) const;
  uint32_t block_size() const;
  uint32_t draft_vocab_size() const;
  uint32_t window_of(std::optional<uint32_t> tokens, const char* key, const char* wanted_by) const;
  std::vector<uint32_t> window_tokens() const;
  std::vector<uint32_t> layer_type_windows() const;
  std::vector<uint32_t> target_layer_ids() const;

  const RawConfig& raw_;
  std::string_view source_;
};

void Builder::check_heads(const DraftConfig& config) const {
  if (config.num_q_heads % config.num_kv_heads != 0)
    bad("num_attention_heads: expected a multiple of num_key_value_heads (", config.num_kv_heads,
        "), got ", config.num_q_heads);
  const std::pair<const char*, uint32_t> dims[] = {{"head_dim", config.qk_head_dim},
                                                   {"v_head_dim", config.v_head_dim}};
  for (const auto& [key, dim] : dims)
    if (dim % kHeadDimMultiple != 0)
      unsupported(key, ": expected a multiple of ", kHeadDimMultiple, ", got ", dim);
  const uint64_t rows = uint64_t{config.num_q_heads} * config.qk_head_dim +
                        config.num_kv_heads * (uint64_t{config.qk_head_dim} + config.v_head_dim);
  const uint64_t o_cols = uint64_t{config.num_q_heads} * config.v_head_dim;
  if (rows > kMaxRows || o_cols > kMaxRows)
    bad("num_attention_heads: expected at most ", kMaxRows, " qkv rows, got ", rows);
}

uint32_t Builder::rotary_dim(uint32_t head_dim) const {
  const double factor = raw_.partial_rotary.value_or(1.0);
  const auto dim = static_cast<uint32_t>(head_dim * factor);  // truncates, as the vendor's int()
  if (dim % 2 != 0)
    bad("partial_rotary_factor: expected an even number of rotating elements of ", head_dim,
        ", got ", dim, " from ", factor);
  return dim;
}

uint32_t Builder::block_size() const {
  const uint32_t size = *raw_.block_size;
  if (size < 2 || size > kMaxBlockSize)
    unsupported("block_size: expected 2 to ", kMaxBlockSize, " (one verified token and its drafts), got ",
                size, ". Use a draft that was trained with such a block size.");
  return size;
}

uint32_t Builder::draft_vocab_size() const {
  if (!raw_.draft_vocab_size) return 0;
  if (!raw_.vocab_size)
    bad("vocab_size: expected the target's, as draft_vocab_size is given, got nothing");
  if (*raw_.draft_vocab_size > *raw_.vocab_size)
    bad("draft_vocab_size: expected at most vocab_size (", *raw_.vocab_size, "), got ",
        *raw_.draft_vocab_size);
  return *raw_.draft_vocab_size;
}

uint32_t Builder::window_of(std::optional<uint32_t> tokens, const char* key,
                            const char* wanted_by) const {
  if (!tokens) bad(key, ": expected a number of tokens, as ", wanted_by, ", got nothing");
  return *tokens;
}

// Who says that a layer is windowed: `use_swa` (MiMo: all layers), or `layer_types`, or
// `use_sliding_window` with `max_window_layers` (Qwen3; its windowed layers are causal unless
// `is_causal` is false: github.com/z-lab/dflash, dflash/model.py).
std::vector<uint32_t> Builder::window_tokens() const {
  const uint32_t num_layers = *raw_.num_layers;
  std::vector<uint32_t> windows(num_layers, 0);
  if (raw_.layer_types) {
    windows = layer_type_windows();
  } else if (!raw_.use_draft_window && raw_.use_sliding_window.value_or(false)) {
    const uint32_t first = raw_.first_window_layer.value_or(kUsualFirstWindowLayer);
    for (uint32_t i = first; i < num_layers; ++i)
      windows[i] = window_of(raw_.sliding_window, "sliding_window", "use_sliding_window is true");
  }
  const auto is_full = [](uint32_t layer_window) { return layer_window == 0; };
  if (!raw_.use_draft_window.value_or(false)) {
    if (!raw_.is_causal && !std::all_of(windows.begin(), windows.end(), is_full))
      unsupported("is_causal: expected false, as layers are windowed, got nothing, which means that ",
                  "these are causal. Use a draft whose layers see the whole block, or none.");
    return windows;
  }

  const std::optional<uint32_t> tokens =
      raw_.draft_window ? raw_.draft_window : raw_.sliding_window;
  const uint32_t window = window_of(tokens, "swa_window_size", "use_swa is true");
  if (raw_.sliding_window && *raw_.sliding_window != window)
    bad("sliding_window: expected swa_window_size (", window, "), got ", *raw_.sliding_window);
  if (raw_.layer_types && std::any_of(windows.begin(), windows.end(), is_full))
    bad("layer_types: expected sliding_attention in every layer, as use_swa is true, got another");
  return std::vector<uint32_t>(num_layers, window);
}

std::vector<uint32_t> Builder::layer_type_windows() const {
  const StringList& types = *raw_.layer_types;
  if (types.size() != *raw_.num_layers)
    bad("layer_types: expected num_hidden_layers (", *raw_.num_layers, ") entries, got ",
        types.size());
  std::vector<uint32_t> windows;
  for (const std::string& type : types) {
    const bool is_window = type == "sliding_attention";
    if (is_window && !raw_.use_draft_window.value_or(raw_.use_sliding_window.value_or(true)))
      bad("layer_types: expected full_attention, as use_swa or use_sliding_window is false, got ",
          type);
    const std::optional<uint32_t> tokens =
        raw_.sliding_window ? raw_.sliding_window : raw_.draft_window;
    windows.push_back(
        is_window ? window_of(tokens, "sliding_window", "layer_types has sliding_attention") : 0);
  }
  return windows;
}

std::vector<uint32_t> Builder::target_layer_ids() const {
  std::vector<uint32_t> ids;
  if (raw_.target_layer_ids->values.empty())
    bad("target_layer_ids: expected at least one layer of the target, got none");
  for (const int64_t value : raw_.target_layer_ids->values) {
    const auto id = static_cast<uint32_t>(value);
    if (std::find(ids.begin(), ids.end(), id) != ids.end())
      bad("target_layer_ids: expected each layer once, got ", id, " twice");
    if (raw_.num_target_layers && id >= *raw_.num_target_layers)
      bad("target_layer_ids: expected layers below num_target_layers (", *raw_.num_target_layers,
          "), got ", id);
    ids.push_back(id);
  }
  const uint64_t width = ids.size() * uint64_t{*raw_.hidden_size};
  if (width > kMaxRows)
    bad("target_layer_ids: expected at most ", kMaxRows, " features of hidden_size each, got ",
        width);
  return ids;
}

DraftConfig Builder::build() const {
  if (raw_.quant_method)
    unsupported("quantization_config: expected none, as a draft is stored in BF16, F16 or F32, got ",
                printable(*raw_.quant_method), ". Use the unquantised draft.");
  DraftConfig config;
  config.hidden_size = *raw_.hidden_size;
  config.num_layers = *raw_.num_layers;
  config.intermediate_size = *raw_.intermediate_size;
  config.num_q_heads = *raw_.num_q_heads;
  config.num_kv_heads = *raw_.num_kv_heads;
  config.qk_head_dim = *raw_.head_dim;
  config.v_head_dim = raw_.v_head_dim.value_or(config.qk_head_dim);
  check_heads(config);
  config.rotary_dim = rotary_dim(config.qk_head_dim);
  config.rope_theta = *raw_.rope_theta;
  config.rms_norm_eps = *raw_.rms_norm_eps;
  config.value_scale = raw_.value_scale.value_or(1.0);
  config.has_sink = raw_.has_sinks.value_or(false);
  config.has_qk_norm = *raw_.has_qk_norm;
  config.block_size = block_size();
  config.mask_token_id = static_cast<int32_t>(*raw_.mask_token_id);
  config.uses_target_mask = is_qwen3();
  config.num_target_layers = raw_.num_target_layers.value_or(0);
  config.vocab_size = raw_.vocab_size.value_or(0);
  config.draft_vocab_size = draft_vocab_size();
  config.max_position_embeddings = raw_.max_position_embeddings.value_or(0);
  config.window_tokens = window_tokens();
  config.target_layer_ids = target_layer_ids();
  return config;
}

}  // namespace

DraftConfig DraftConfig::from_json(std::string_view json, std::string_view source_name) {
  const RawConfig raw = parse_raw_config(json, source_name, {kFields, kWhere});
  return Builder(raw, source_name).build();
}

DraftConfig DraftConfig::from_directory(const std::filesystem::path& draft_dir) {
  const std::string text =
      read_text_file(draft_dir, "config.json", kMaxConfigBytes, "DraftConfig.from_directory");
  return from_json(text, "config.json of the draft");
}

void DraftConfig::check_target(const ModelConfig& target) const {
  const auto check = [](bool ok, const auto&... text) {
    if (!ok)
      fail(ErrorCode::shape_mismatch, "DraftConfig.check_target", "the draft is for another model: ",
           text..., ". Use the draft that was trained for this model, or none.");
  };
  check(hidden_size == target.hidden_size, "hidden_size: expected the model's ",
        target.hidden_size, ", got ", hidden_size);
  check(num_target_layers == 0 || num_target_layers == target.num_layers,
        "num_target_layers: expected the model's ", target.num_layers, " layers, got ",
        num_target_layers);
  for (const uint32_t id : target_layer_ids)
    check(id < target.num_layers, "target_layer_ids: expected layers below ", target.num_layers,
          ", got ", id);
  check(vocab_size <= target.vocab_size, "vocab_size: expected at most the model's ",
        target.vocab_size, ", got ", vocab_size);
  check(vocab_size == 0 || target.vocab_size - vocab_size <= kMaxPadding, "vocab_size: expected the model's ",
        target.vocab_size, " but for at most ", kMaxPadding, " rows of padding, got ", vocab_size);
  check(static_cast<uint32_t>(mask_token_id) < target.vocab_size,
        "mask_token_id: expected a token below the model's vocab_size (", target.vocab_size,
        "), got ", mask_token_id);
}

}  // namespace mimo_rt
