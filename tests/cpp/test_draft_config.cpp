// dflash/config.json: MiMo's dialect and Qwen3's, every refused value by name, and drafts for other targets.
#include <mimo_rt/draft.h>

#include "check.h"
#include "safetensors_writer.h"

#include <map>

namespace {

using mimo_rt::DraftConfig;
using mimo_rt::ModelConfig;

/// JSON values by key, as text; the keys of `dflash_config` begin with a dot.
using Fields = std::map<std::string, std::string>;

std::string to_json(const Fields& fields) {
  std::string top, nested;
  for (const auto& [key, value] : fields) {
    std::string& out = key[0] == '.' ? nested : top;
    out += (out.empty() ? "\"" : ",\"") + key.substr(key[0] == '.') + "\":" + value;
  }
  return "{" + top + (nested.empty() ? "" : ",\"dflash_config\":{" + nested + "}") + "}";
}

DraftConfig parse(const Fields& fields) { return DraftConfig::from_json(to_json(fields), "config.json"); }

Fields with(Fields fields, const Fields& changes) {
  for (const auto& [key, value] : changes) {
    if (value.empty()) fields.erase(key);
    else fields[key] = value;
  }
  return fields;
}

/// The values of the published checkpoint.
Fields mimo() {
  return {{"model_type", "\"qwen3\""}, {"architectures", "[\"DFlashDraftModel\"]"},
          {"hidden_size", "6144"}, {"intermediate_size", "16384"}, {"num_hidden_layers", "5"},
          {"num_attention_heads", "128"}, {"num_key_value_heads", "8"}, {"head_dim", "128"},
          {"v_head_dim", "128"}, {"partial_rotary_factor", "0.5"}, {"rope_theta", "10000"},
          {"block_size", "8"}, {"num_target_layers", "70"}, {"vocab_size", "152064"},
          {"max_position_embeddings", "262144"}, {"sliding_window", "1024"}, {"rms_norm_eps", "1e-5"},
          {"hidden_act", "\"silu\""}, {"attention_bias", "false"}, {"tie_word_embeddings", "false"},
          {".target_layer_ids", "[0, 15, 31, 47, 69]"}, {".mask_token_id", "151669"},
          {".block_size", "8"}, {".num_anchors", "4096"}, {".loss_decay_gamma", "7.0"},
          {".use_swa", "true"}, {".swa_window_size", "1024"}, {".backbone_rotary_base", "5000000"},
          {".attention_value_scale", "0.612"}, {".attention_sink_bias", "true"}};
}

Fields qwen3() {
  return {{"model_type", "\"qwen3\""}, {"hidden_size", "64"}, {"intermediate_size", "96"},
          {"num_hidden_layers", "3"}, {"num_attention_heads", "4"}, {"num_key_value_heads", "2"},
          {"head_dim", "32"}, {"rope_theta", "1000000"}, {"rms_norm_eps", "1e-6"},
          {"block_size", "16"}, {"sliding_window", "null"}, {"use_sliding_window", "false"},
          {".target_layer_ids", "[1, 3]"}, {".mask_token_id", "7"}};
}

ModelConfig target_of(const DraftConfig& draft) {
  ModelConfig target;
  target.hidden_size = draft.hidden_size;
  target.num_layers = 70;
  target.vocab_size = 152576;
  return target;
}

}  // namespace

TEST_CASE("the published draft's config is read as it is meant") {
  const DraftConfig config = parse(mimo());
  CHECK_EQ(config.hidden_size, 6144u);
  CHECK_EQ(config.num_layers, 5u);
  CHECK_EQ(config.intermediate_size, 16384u);
  CHECK_EQ(config.num_q_heads, 128u);
  CHECK_EQ(config.num_kv_heads, 8u);
  CHECK_EQ(config.qk_head_dim, 128u);
  CHECK_EQ(config.v_head_dim, 128u);
  CHECK_EQ(config.rotary_dim, 64u);
  CHECK_EQ(config.rope_theta, 10000.0);  // not backbone_rotary_base
  CHECK_EQ(config.rms_norm_eps, 1e-5);
  CHECK_EQ(config.value_scale, 0.612);
  CHECK(config.has_sink);
  CHECK(config.has_qk_norm);
  CHECK_EQ(config.block_size, 8u);
  CHECK_EQ(config.mask_token_id, 151669);
  CHECK(!config.uses_target_mask);
  CHECK_EQ(config.num_target_layers, 70u);
  CHECK_EQ(config.vocab_size, 152064u);
  CHECK(config.window_tokens == std::vector<uint32_t>(5, 1024));
  CHECK(config.target_layer_ids == (std::vector<uint32_t>{0, 15, 31, 47, 69}));
  config.check_target(target_of(config));
}

TEST_CASE("a plain Qwen3 draft has no sinks, full attention and rotates whole heads") {
  const DraftConfig config = parse(qwen3());
  CHECK_EQ(config.rotary_dim, 32u);
  CHECK_EQ(config.v_head_dim, 32u);
  CHECK_EQ(config.value_scale, 1.0);
  CHECK(!config.has_sink);
  CHECK(config.has_qk_norm);
  CHECK_EQ(config.num_target_layers, 0u);
  CHECK(config.uses_target_mask);
  for (const char* field : {"use_swa", "attention_sink_bias"})  // one of MiMo's fields is enough
    CHECK(!parse(with(qwen3(), {{std::string(".") + field, "false"}})).uses_target_mask);
  CHECK(!parse(with(qwen3(), {{"v_head_dim", "32"}})).uses_target_mask);
  CHECK(!parse(with(qwen3(), {{".swa_window_size", "9"}})).uses_target_mask);
  for (const char* scale : {"0.6", "1.0"})
    CHECK(!parse(with(qwen3(), {{".attention_value_scale", scale}})).uses_target_mask);
  CHECK(config.window_tokens == std::vector<uint32_t>(3, 0));
  CHECK(!parse(with(qwen3(), {{"use_qk_norm", "false"}})).has_qk_norm);
  const std::string nested = "{\"rope_type\":\"default\",\"rope_theta\":5e6}";
  CHECK_EQ(parse(with(qwen3(), {{"rope_theta", ""}, {"rope_parameters", nested}})).rope_theta, 5e6);
  CHECK_EQ(parse(with(qwen3(), {{"partial_rotary_factor", "0"}})).rotary_dim, 0u);
}

TEST_CASE("windows follow use_swa, layer_types or use_sliding_window") {
  const auto windows = [](const Fields& changes) {
    return parse(with(qwen3(), with({{"is_causal", "false"}}, changes))).window_tokens;
  };
  using List = std::vector<uint32_t>;
  const std::string mixed = "[\"full_attention\",\"sliding_attention\",\"full_attention\"]";
  const std::string all = "[\"sliding_attention\",\"sliding_attention\",\"sliding_attention\"]";
  CHECK(windows({{"sliding_window", "64"}}) == List(3, 0));
  CHECK(windows({{"sliding_window", "64"}, {"use_sliding_window", "true"}}) == List(3, 0));
  CHECK(windows({{"sliding_window", "64"}, {"use_sliding_window", "true"}, {"max_window_layers", "1"}}) ==
        (List{0, 64, 64}));
  CHECK(windows({{"sliding_window", "64"}, {"use_sliding_window", "true"}, {"layer_types", mixed}}) ==
        (List{0, 64, 0}));
  CHECK(windows({{".use_swa", "true"}, {".swa_window_size", "9"}, {"is_causal", ""}}) == List(3, 9));
  CHECK(windows({{".use_swa", "true"}, {"sliding_window", "9"}}) == List(3, 9));
  CHECK(windows({{".use_swa", "true"}, {".swa_window_size", "9"}, {"layer_types", all}}) == List(3, 9));
  CHECK(windows({{".use_swa", "false"}, {".swa_window_size", "9"}}) == List(3, 0));

  for (const char* unsaid : {"", "null"}) {  // Qwen3's windowed layers are causal then
    const std::string needle = "is_causal: expected false, as layers are windowed, got nothing";
    const Fields window = {{"sliding_window", "64"}, {"use_sliding_window", "true"}, {"is_causal", unsaid}};
    CHECK(windows(window) == List(3, 0));  // max_window_layers is 28
    CHECK_THROWS(unsupported_shape, needle, windows(with(window, {{"layer_types", mixed}})));
    CHECK_THROWS(unsupported_shape, needle, windows(with(window, {{"max_window_layers", "2"}})));
  }

  const auto refused = [](const Fields& changes, const std::string& needle) {
    CHECK_THROWS(bad_format, needle, parse(with(qwen3(), changes)));
  };
  refused({{"layer_types", mixed}, {"sliding_window", "64"}}, "layer_types: expected full_attention");
  refused({{"layer_types", mixed}, {"use_sliding_window", "true"}}, "sliding_window: expected a number");
  refused({{"layer_types", "[\"full_attention\"]"}}, "layer_types: expected num_hidden_layers (3)");
  refused({{".use_swa", "true"}}, "swa_window_size: expected a number");
  refused({{".use_swa", "true"}, {".swa_window_size", "9"}, {"sliding_window", "8"}},
          "sliding_window: expected swa_window_size (9), got 8");
  refused({{".use_swa", "true"}, {".swa_window_size", "9"}, {"layer_types", mixed}},
          "layer_types: expected sliding_attention in every layer");
}

TEST_CASE("what this library cannot compute is refused by name") {
  const std::vector<std::pair<Fields, std::string>> cases = {
      {{{"is_causal", "true"}}, "is_causal: expected true or false (false), got true"},
      {{{".is_causal", "true"}}, "is_causal"},
      {{{".input_embedding_scale", "8.0"}}, "input_embedding_scale: expected a number in [1, 1], got 8.0"},
      {{{".output_multiplier", "0.5"}}, "output_multiplier: expected a number in [1, 1], got 0.5"},
      {{{"output_multiplier", "2"}}, "output_multiplier"},
      {{{".final_logit_softcapping", "20.0"}}, "final_logit_softcapping: expected a number in [0, 0], got 20.0"},
      {{{"attention_bias", "true"}}, "attention_bias"},
      {{{"hidden_act", "\"gelu\""}}, "hidden_act"},
      {{{"model_type", "\"llama\""}}, "model_type"},
      {{{"rope_scaling", "{\"rope_type\":\"yarn\",\"factor\":4}"}}, "rope_scaling.rope_type"},
      {{{"rope_scaling", "{\"factor\":4}"}}, "rope_scaling"},
      {{{"rope_theta", ""}, {"rope_parameters", "{\"rope_type\":\"linear\",\"rope_theta\":1e4}"}},
       "rope_parameters.rope_type"},
      {{{"rope_parameters", "{\"type\":\"yarn\",\"factor\":4}"}}, "rope_parameters.rope_type"},
      {{{"rope_parameters", "{\"full_attention\":{\"type\":\"yarn\"}}"}}, "rope_parameters.rope_type"},
      {{{"rope_parameters", "{\"full_attention\":{\"rope_type\":\"yarn\"}}"}}, "rope_parameters.rope_type"},
      {{{"rope_parameters", "{\"sliding_attention\":{\"type\":\"yarn\"}}"}}, "sliding_attention.rope_type"},
      {{{"rope_parameters", "{\"sliding_attention\":{\"rope_type\":\"yarn\"}}"}}, "sliding_attention.rope_type"},
      {{{".per_position", "true"}}, "per_position"},
      {{{"quantization_config", "{\"quant_method\":\"fp8\"}"}}, "Use the unquantised draft"},
      {{{"head_dim", "24"}}, "head_dim: expected a multiple of 16, got 24"},
      {{{"v_head_dim", "40"}}, "v_head_dim: expected a multiple of 16, got 40"},
      {{{"block_size", "1"}}, "block_size: expected 2 to 16"},
      {{{"block_size", "17"}}, "got 17. Use a draft that was trained with such a block size"},
  };
  for (const auto& [changes, needle] : cases)
    CHECK_THROWS(unsupported_shape, needle, parse(with(qwen3(), changes)));
  for (const char* none : {"null", "0"})
    parse(with(qwen3(), {{".input_embedding_scale", "1.0"}, {".output_multiplier", "1"},
                         {".final_logit_softcapping", none}}));
  for (int size = 2; size <= 16; ++size)
    CHECK_EQ(parse(with(qwen3(), {{"block_size", std::to_string(size)}})).block_size, uint32_t(size));
}

TEST_CASE("fields that are missing or contradict each other are refused by name") {
  for (const auto& [key, value] : qwen3()) {
    if (key == "sliding_window" || key == "use_sliding_window") continue;
    const std::string name = key.substr(key[0] == '.');
    CHECK_THROWS(bad_format, name + ": expected", parse(with(qwen3(), {{key, ""}})));
    CHECK_THROWS(bad_format, name + ": expected", parse(with(qwen3(), {{key, "{}"}})));
  }
  const std::vector<std::pair<Fields, std::string>> cases = {
      {{{".block_size", "8"}}, "block_size and dflash_config.block_size: expected equal values"},
      {{{"mask_token_id", "8"}}, "mask_token_id and dflash_config.mask_token_id"},
      {{{".target_layer_ids", "[]"}}, "target_layer_ids: expected at least one"},
      {{{".target_layer_ids", "[2,2]"}}, "target_layer_ids: expected each layer once, got 2 twice"},
      {{{".target_layer_ids", "[-1]"}}, "target_layer_ids"},
      {{{"num_target_layers", "3"}}, "target_layer_ids: expected layers below num_target_layers (3), got 3"},
      {{{"num_key_value_heads", "3"}}, "num_attention_heads: expected a multiple"},
      {{{"partial_rotary_factor", "0.4"}, {"head_dim", "48"}}, "partial_rotary_factor: expected an even"},
      {{{".mask_token_id", "-1"}}, "mask_token_id"},
      {{{"rms_norm_eps", "0"}}, "rms_norm_eps"},
  };
  for (const auto& [changes, needle] : cases)
    CHECK_THROWS(bad_format, needle, parse(with(qwen3(), changes)));
}

TEST_CASE("a draft may know part of the vocabulary, and says of which") {
  CHECK_EQ(parse(mimo()).draft_vocab_size, 0u);
  for (const char* key : {"draft_vocab_size", ".draft_vocab_size"}) {
    CHECK_EQ(parse(with(mimo(), {{key, "1"}})).draft_vocab_size, 1u);
    CHECK_EQ(parse(with(mimo(), {{key, "152064"}})).draft_vocab_size, 152064u);
    CHECK_EQ(parse(with(mimo(), {{key, "null"}})).draft_vocab_size, 0u);
  }
  const auto refused = [](const Fields& changes, const std::string& needle) {
    CHECK_THROWS(bad_format, needle, parse(with(mimo(), changes)));
  };
  refused({{"draft_vocab_size", "152065"}}, "draft_vocab_size: expected at most vocab_size (152064), got 152065");
  refused({{"draft_vocab_size", "0"}}, "draft_vocab_size: expected an integer in [1, 16777216], got 0");
  refused({{"draft_vocab_size", "-5"}}, "draft_vocab_size: expected an integer in [1, 16777216], got -5");
  refused({{"draft_vocab_size", "32000.5"}}, "draft_vocab_size");
  refused({{"draft_vocab_size", "[1]"}}, "draft_vocab_size");
  refused({{"draft_vocab_size", "5"}, {"vocab_size", ""}}, "vocab_size: expected the target's, as draft_vocab_size");
}

TEST_CASE("a draft for another target is refused with both values") {
  const DraftConfig config = parse(mimo());
  const auto refused = [&](uint32_t ModelConfig::*member, uint32_t value, const std::string& needle) {
    ModelConfig target = target_of(config);
    target.*member = value;
    CHECK_THROWS(shape_mismatch, needle, config.check_target(target));
  };
  refused(&ModelConfig::hidden_size, 4096, "hidden_size: expected the model's 4096, got 6144");
  refused(&ModelConfig::num_layers, 71, "num_target_layers: expected the model's 71 layers, got 70");
  refused(&ModelConfig::vocab_size, 152063, "vocab_size: expected at most the model's 152063, got 152064");
  refused(&ModelConfig::vocab_size, 152064 + 1025,
          "vocab_size: expected the model's 153089 but for at most 1024 rows of padding, got 152064");
  ModelConfig padded = target_of(config);
  padded.vocab_size = 152064 + 1024;
  config.check_target(padded);
  refused(&ModelConfig::num_layers, 71, "Use the draft that was trained for this model, or none.");

  DraftConfig unstated = config;
  unstated.num_target_layers = unstated.vocab_size = 0;
  ModelConfig target = target_of(config);
  target.num_layers = 69;
  CHECK_THROWS(shape_mismatch, "target_layer_ids: expected layers below 69, got 69",
               unstated.check_target(target));
  target = target_of(config);
  target.vocab_size = 151669;
  CHECK_THROWS(shape_mismatch, "mask_token_id: expected a token below", unstated.check_target(target));
}

TEST_CASE("a draft directory without a config says so") {
  const writer::TempDir dir;
  CHECK_THROWS(io, "config.json", DraftConfig::from_directory(dir.path()));
  dir.write("config.json", to_json(mimo()));
  CHECK_EQ(DraftConfig::from_directory(dir.path()).num_layers, 5u);
  CHECK_THROWS(io, "expected a directory", DraftConfig::from_directory(dir.path() / "none"));
}

CHECK_MAIN()
