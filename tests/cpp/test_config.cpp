// config.json: every row of the field table present, missing, mistyped and out of range; then the
// relations between fields and the dialects of the vendor and of transformers' port.
#include <mimo_rt/config.h>

#include "check.h"
#include "core/config_fields.h"
#include "safetensors_writer.h"

#include <algorithm>
#include <chrono>
#include <map>

namespace {

using mimo_rt::ConfigField;
using mimo_rt::Error;
using mimo_rt::ErrorCode;
using mimo_rt::LayerConfig;
using mimo_rt::ModelConfig;
using mimo_rt::Need;
using mimo_rt::QkvLayout;
using mimo_rt::WeightFormat;

/// JSON values by dotted path, as text.
using Fields = std::map<std::string, std::string>;

std::string to_json(const Fields& fields, const std::string& prefix = "") {
  std::string out = "{";
  std::string done;  // the nested object that was written last
  for (const auto& [path, value] : fields) {
    if (path.compare(0, prefix.size(), prefix) != 0) continue;
    const std::string rest = path.substr(prefix.size()), head = rest.substr(0, rest.find('.'));
    if (head == done) continue;
    done = head;
    out += (out.size() > 1 ? ",\"" : "\"") + head + "\":";
    out += head == rest ? value : to_json(fields, prefix + head + ".");
  }
  return out + "}";
}

// Dense, expert, full and window layers, all three weight formats: every field is in force.
Fields good() {
  return {{"model_type", "\"mimo_v2\""},
          {"hidden_size", "64"},
          {"num_hidden_layers", "3"},
          {"vocab_size", "100"},
          {"intermediate_size", "96"},
          {"max_position_embeddings", "1024"},
          {"layernorm_epsilon", "1e-5"},
          {"num_attention_heads", "8"},
          {"num_key_value_heads", "2"},
          {"head_dim", "24"},
          {"v_head_dim", "16"},
          {"swa_num_key_value_heads", "4"},
          {"rope_theta", "10000000"},
          {"swa_rope_theta", "10000.0"},
          {"partial_rotary_factor", "0.334"},
          {"sliding_window", "128"},
          {"attention_value_scale", "0.612"},
          {"add_swa_attention_sink_bias", "true"},
          {"attention_projection_layout", "\"fused_qkv\""},
          {"hybrid_layer_pattern", "[0,1,0]"},
          {"moe_layer_freq", "[0,1,1]"},
          {"n_routed_experts", "6"},
          {"num_experts_per_tok", "2"},
          {"moe_intermediate_size", "32"},
          {"eos_token_id", "[7,9]"},
          {"quantization_config.quant_method", "\"fp8\""},
          {"quantization_config.weight_block_size", "[128,128]"},
          {"quantization_config.store_dtype", "\"mxfp4\""},
          {"quantization_config.mxfp4_block_size", "32"},
          {"quantization_config.ignored_layers", "[\"model.layers.1.self_attn.o_proj\"]"}};
}

// The fields that `good` leaves at their defaults, with values that change nothing.
Fields complete() {
  Fields fields = {{"tie_word_embeddings", "false"},
                   {"hidden_act", "\"silu\""},
                   {"swa_num_attention_heads", "8"},
                   {"swa_head_dim", "24"},
                   {"swa_v_head_dim", "16"},
                   {"swa_partial_rotary_factor", "0.334"},
                   {"rope_parameters.rope_type", "\"default\""},
                   {"rope_parameters.sliding_attention.rope_type", "\"default\""},
                   {"rope_scaling.rope_type", "\"default\""},
                   {"sliding_window_size", "128"},
                   {"attention_bias", "false"},
                   {"use_qk_norm", "false"},
                   {"add_full_attention_sink_bias", "false"},
                   {"hybrid_block_size", "2"},
                   {"layer_types",
                    "[\"full_attention\",\"sliding_attention\",\"full_attention\"]"},
                   {"mlp_layer_types", "[\"dense\",\"sparse\",\"sparse\"]"},
                   {"first_k_dense_replace", "0"},
                   {"n_shared_experts", "0"},
                   {"n_group", "1"},
                   {"topk_group", "1"},
                   {"scoring_func", "\"sigmoid\""},
                   {"topk_method", "\"noaux_tc\""},
                   {"moe_router_dtype", "\"float32\""},
                   {"norm_topk_prob", "true"},
                   {"routed_scaling_factor", "1"},
                   {"quantization_config.fmt", "\"e4m3\""},
                   {"quantization_config.activation_scheme", "\"dynamic\""}};
  fields.merge(good());
  return fields;
}

ModelConfig parse(const Fields& fields, uint32_t window = 0) {
  return ModelConfig::from_json(to_json(fields), "config.json", window);
}

Fields with(Fields fields, const std::string& key, const std::string& value) {
  fields[key] = value;
  return fields;
}

Fields without(Fields fields, const std::string& key) {
  fields.erase(key);
  return fields;
}

// The spelling of `field` that the complete config uses.
std::string key_of(const ConfigField& field) {
  const Fields fields = complete();
  for (const char* key : field.keys)
    if (key && fields.count(key)) return key;
  return "none";
}

std::string number(double value) {
  std::ostringstream out;
  out.precision(17);
  out << value;
  return out.str();
}

/// Values of a type that the field does not take.
std::vector<std::string> mistyped(const ConfigField& field) {
  switch (field.member.index()) {
    case 0: return {"\"1\"", "true", "[]", "{}", "1.5", "1e0"};
    case 1: return {"\"1\"", "true", "[]", "{}"};
    case 2: return {"\"true\"", "1", "[]", "{}"};
    case 3: return {"1", "true", "[]", "{}"};
    case 4: return {"\"1\"", "true", "{}", "[\"1\"]", "[1.5]", "[[]]", "1.5"};
    default: return {"\"a\"", "1", "{}", "[1]", "[[]]"};
  }
}

std::vector<std::string> out_of_range(const ConfigField& field) {
  const std::string low = number(field.min - 1), high = number(field.max + 1);
  switch (field.member.index()) {
    case 0: return {low, high, "-1", "18446744073709551615", "9223372036854775808"};
    case 1: return {low, high, "-1", "1e300"};
    case 2: return field.allowed ? std::vector<std::string>{"true"} : std::vector<std::string>{};
    case 3: return {"\"no such value\"", "\"\"", "\"a|b\""};
    case 4: return {"[" + low + "]", "[" + high + "]", "[18446744073709551615]"};
    default: return field.allowed ? std::vector<std::string>{"[\"no such value\"]"}
                                  : std::vector<std::string>{};
  }
}

void refused(const Fields& fields, ErrorCode code, const std::string& needle, int line) {
  check::throws(__FILE__, line, code, needle, [&] { parse(fields); });
}
#define REFUSED(fields, needle) refused(fields, ErrorCode::bad_format, needle, __LINE__)

// What transformers 5.23 writes for a tiny model, shortened.
Fields port() {
  return {{"model_type", "\"mimo_v2_flash\""},
          {"hidden_size", "32"},
          {"num_hidden_layers", "3"},
          {"vocab_size", "64"},
          {"intermediate_size", "48"},
          {"max_position_embeddings", "128"},
          {"rms_norm_eps", "1e-05"},
          {"num_attention_heads", "4"},
          {"num_key_value_heads", "1"},
          {"head_dim", "12"},
          {"v_head_dim", "8"},
          {"layer_types", "[\"full_attention\",\"sliding_attention\",\"full_attention\"]"},
          {"mlp_layer_types", "[\"dense\",\"sparse\",\"sparse\"]"},
          {"rope_parameters.full_attention.rope_theta", "5000000.0"},
          {"rope_parameters.full_attention.rope_type", "\"default\""},
          {"rope_parameters.sliding_attention.rope_theta", "10000.0"},
          {"sliding_window", "129"},
          {"attention_value_scale", "0.707"},
          {"n_routed_experts", "4"},
          {"num_experts_per_tok", "2"},
          {"moe_intermediate_size", "16"},
          {"pad_token_id", "null"}};
}

}  // namespace

TEST_CASE("every field: good value under every spelling") {
  const mimo_rt::RawConfig base = mimo_rt::parse_raw_config(to_json(complete()), "config.json");
  CHECK_EQ(parse(complete()).layers[1].window_tokens, 128u);
  for (const ConfigField& field : mimo_rt::config_fields()) {
    const Fields fields = complete();
    CHECK(has_value(field, base));
    const std::string value = fields.at(key_of(field));
    for (const char* key : field.keys) {
      if (!key) continue;
      const Fields moved = with(without(fields, key_of(field)), key, value);
      const mimo_rt::RawConfig raw = mimo_rt::parse_raw_config(to_json(moved), "config.json");
      std::visit([&](auto member) { CHECK(raw.*member == base.*member); }, field.member);
      // A second spelling must agree; the types that have no other good value are left out.
      if (key == key_of(field) || field.member.index() > 1) continue;
      parse(with(fields, key, value));
      REFUSED(with(fields, key, field.member.index() == 1 ? "1.0" : "3"), "equal values");
    }
  }
}

TEST_CASE("every field: missing and null") {
  for (const ConfigField& field : mimo_rt::config_fields()) {
    for (const bool null : {false, true}) {
      const std::string key = key_of(field);
      Fields fields = null ? with(complete(), key, "null") : without(complete(), key);
      if (key == "rope_scaling.rope_type") fields = without(complete(), key);  // else {} is left
      if (field.need == Need::optional) {
        parse(fields);
        continue;
      }
      REFUSED(fields, std::string(field.keys[0]).substr(0, std::string(field.keys[0]).find('.')));
    }
  }
}

TEST_CASE("every field: mistyped and out of range") {
  for (const ConfigField& field : mimo_rt::config_fields()) {
    const std::string named = std::string(field.keys[0]) + ": expected";
    for (const std::string& value : mistyped(field))
      REFUSED(with(complete(), key_of(field), value), named);
    if (!field.allowed && field.member.index() == 3) continue;
    for (const std::string& value : out_of_range(field))
      refused(with(complete(), key_of(field), value), field.code, named, __LINE__);
  }
}

TEST_CASE("the control: a check that is not in the table does not fire") {
  CHECK_EQ(parse(with(good(), "some_new_field", "{\"a\":[1]}")).layers.size(), size_t{3});
  CHECK_EQ(parse(with(good(), "attention_chunk_size", "\"ignored\"")).layers.size(), size_t{3});
}

TEST_CASE("good values land where they belong") {
  const ModelConfig config = parse(good());
  CHECK_EQ(config.layers.size(), size_t{3});
  const LayerConfig &full = config.layers[0], &window = config.layers[1];
  CHECK(!full.is_moe && window.is_moe && config.layers[2].is_moe);
  CHECK(!full.has_sink && window.has_sink && !config.layers[2].has_sink);
  CHECK_EQ(full.window_tokens, 0u);
  CHECK_EQ(window.window_tokens, 128u);
  CHECK_EQ(parse(good(), 129).layers[1].window_tokens, 129u);
  CHECK_EQ(parse(good(), 129).layers[0].window_tokens, 0u);
  CHECK_EQ(full.num_kv_heads, 2u);
  CHECK_EQ(window.num_kv_heads, 4u);
  CHECK_EQ(full.rotary_dim, 8u);  // int(24 * 0.334)
  CHECK_EQ(full.rope_theta, 1e7);
  CHECK_EQ(window.rope_theta, 1e4);
  CHECK(config.qkv_layout == QkvLayout::fused);
  CHECK_EQ(config.qkv_chunks, 2u);
  CHECK_EQ(config.value_scale, 0.612);
  CHECK_EQ(config.routed_scaling_factor, 1.0);
  CHECK(config.eos_token_ids == (std::vector<int32_t>{7, 9}));
  CHECK(config.expert_format == WeightFormat::mxfp4);
  CHECK(config.format_of("model.layers.0.self_attn.o_proj") == WeightFormat::fp8_block);
  CHECK(config.format_of("model.layers.1.self_attn.o_proj") == WeightFormat::plain);
  CHECK(config.format_of("model.layers.10.self_attn.o_proj") == WeightFormat::fp8_block);
  CHECK(config.format_of("model.layers.1.mlp.experts.0.up_proj") == WeightFormat::mxfp4);
  CHECK_EQ(parse(with(good(), "attention_value_scale", "null")).value_scale, 1.0);
}

TEST_CASE("ignored layers: a module, its parent, its last parts; never part of a name") {
  const auto format = [](const std::string& ignored, const char* module) {
    return parse(with(good(), "quantization_config.ignored_layers", ignored)).format_of(module);
  };
  const char* module = "model.layers.1.self_attn.o_proj";
  for (const char* entry : {"model.layers.1.self_attn.o_proj", "model", "model.layers.1",
                            "model.layers.1.self_attn", "o_proj", "self_attn.o_proj",
                            "layers.1.self_attn.o_proj"})
    CHECK(format("[\"z\",\"" + std::string(entry) + "\",\"a\"]", module) == WeightFormat::plain);
  for (const char* entry : {"", ".", "model.", ".o_proj", "proj", "mode", "self_attn", "layers",
                            "model.layers.1.self_attn.o_proj.", "model.layers.10", "1"})
    CHECK(format("[\"z\",\"" + std::string(entry) + "\",\"a\"]", module) ==
          WeightFormat::fp8_block);
}

TEST_CASE("ignored layers: a long list is refused, the longest one is looked up quickly") {
  const auto list = [](int count) {
    std::string out = "[\"o_proj\"";
    for (int i = 1; i < count; ++i) out += ",\"model.layers.x" + std::to_string(i) + "\"";
    return out + "]";
  };
  REFUSED(with(good(), "quantization_config.ignored_layers", list(8193)),
          "quantization_config.ignored_layers: expected at most 8192 entries, got 8193");
  const ModelConfig config = parse(with(good(), "quantization_config.ignored_layers", list(8192)));
  // As many look-ups as the largest config makes; a scan of the list would take half a minute.
  const std::string expert = "model.layers.1.mlp.experts.0.up_proj";
  const auto begin = std::chrono::steady_clock::now();
  int num_quantised = 0;
  for (int i = 0; i < 786'432; ++i)
    num_quantised += config.format_of(expert) == WeightFormat::mxfp4;
  CHECK_EQ(num_quantised, 786'432);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(8));
  CHECK(config.format_of("model.layers.0.self_attn.o_proj") == WeightFormat::plain);
}

TEST_CASE("fields must agree with each other") {
  REFUSED(with(good(), "num_attention_heads", "7"), "num_attention_heads: expected a multiple");
  REFUSED(with(good(), "swa_num_key_value_heads", "3"), "swa_num_attention_heads");
  REFUSED(with(good(), "swa_num_key_value_heads", "1"), "chunks of the fused qkv");
  REFUSED(with(good(), "partial_rotary_factor", "0.21"), "partial_rotary_factor");  // 5 elements
  REFUSED(with(good(), "partial_rotary_factor", "0"), "partial_rotary_factor");
  REFUSED(without(good(), "hybrid_layer_pattern"), "hybrid_layer_pattern: expected");
  REFUSED(without(good(), "moe_layer_freq"), "moe_layer_freq: expected");
  REFUSED(with(good(), "hybrid_layer_pattern", "[0,1]"), "3) entries, got 2");
  REFUSED(with(good(), "moe_layer_freq", "[0,1,1,1]"), "3) entries, got 4");
  REFUSED(with(good(), "moe_layer_freq", "[0,2,1]"), "moe_layer_freq[1]");
  REFUSED(with(good(), "num_experts_per_tok", "7"), "num_experts_per_tok");
  REFUSED(with(good(), "sliding_window_size", "127"), "sliding_window");
  REFUSED(with(good(), "moe_intermediate_size", "48"), "multiples of 32");
  REFUSED(with(good(), "quantization_config.weight_block_size", "[128]"), "2 entries");
  REFUSED(with(good(), "layer_types", "[\"full_attention\",\"full_attention\",\"full_attention\"]"),
          "layer_types");
  Fields many = with(with(good(), "n_routed_experts", "65535"), "num_hidden_layers", "9");
  many = with(many, "hybrid_layer_pattern", "[0,0,0,0,0,0,0,0,0]");
  REFUSED(with(many, "moe_layer_freq", "1"), "experts in all layers");
  Fields wide = with(with(good(), "num_attention_heads", "16384"), "head_dim", "4096");
  parse(wide);  // 2^26 rows
  CHECK_THROWS(invalid_argument, "window_tokens_override", parse(good(), 0xffffffffu));
}

TEST_CASE("architectures without sinks, windows, experts or partial rotation") {
  const Fields no_sinks = without(good(), "add_swa_attention_sink_bias");
  CHECK(!parse(no_sinks).layers[1].has_sink);
  const Fields whole_head = without(good(), "partial_rotary_factor");
  CHECK_EQ(parse(whole_head).layers[0].rotary_dim, 24u);
  CHECK(parse(with(good(), "tie_word_embeddings", "true")).tie_word_embeddings);
  Fields full = with(good(), "hybrid_layer_pattern", "[0,0,0]");
  full = without(without(full, "sliding_window"), "swa_rope_theta");
  CHECK_EQ(parse(full).layers[1].window_tokens, 0u);
  CHECK_EQ(parse(full).layers[1].num_kv_heads, 2u);
  Fields dense = with(good(), "moe_layer_freq", "0");
  for (const char* key : {"n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"})
    dense = without(dense, key);
  CHECK_EQ(parse(dense).num_experts, 0u);
  CHECK(parse(dense).expert_format == WeightFormat::plain);
  const Fields all_moe = without(with(good(), "moe_layer_freq", "1"), "intermediate_size");
  CHECK(parse(all_moe).layers[0].is_moe);
  Fields plain;
  for (const auto& [key, value] : good())
    if (key.find("quantization") == std::string::npos) plain[key] = value;
  CHECK(parse(plain).linear_format == WeightFormat::plain);
  Fields blocks = with(without(good(), "hybrid_layer_pattern"), "hybrid_block_size", "3");
  CHECK_EQ(parse(blocks).layers[1].window_tokens, 128u);
  CHECK_EQ(parse(blocks).layers[2].window_tokens, 0u);
}

TEST_CASE("the config of transformers' port") {
  const ModelConfig config = parse(port());
  CHECK_EQ(config.layers[1].window_tokens, 129u);  // counts the query itself
  CHECK_EQ(config.layers[1].num_kv_heads, 2u);     // twice those of full layers
  CHECK_EQ(config.layers[0].num_kv_heads, 1u);
  CHECK(config.layers[1].has_sink && !config.layers[0].has_sink);
  CHECK_EQ(config.layers[0].rotary_dim, 4u);       // int(12 * 0.334), the port's default
  CHECK_EQ(config.layers[1].rope_theta, 1e4);
  CHECK_EQ(config.layers[0].rope_theta, 5e6);
  CHECK(config.qkv_layout == QkvLayout::split);
  CHECK_EQ(parse(with(port(), "sliding_window_size", "128")).layers[1].window_tokens, 129u);
  REFUSED(with(port(), "sliding_window_size", "129"), "sliding_window: expected 130");
  for (const char* part : {"", "full_attention.", "sliding_attention."})
    for (const char* key : {"rope_type", "type"})
      refused(with(port(), std::string("rope_parameters.") + part + key, "\"yarn\""),
              ErrorCode::unsupported_shape, "rope_type", __LINE__);
  REFUSED(with(port(), "rope_theta", "1e4"), "rope_theta");
}

TEST_CASE("the text itself may be hostile") {
  const auto bad = [](const std::string& text, const char* needle) {
    CHECK_THROWS(bad_format, needle, ModelConfig::from_json(text, "x.json"));
  };
  const std::string text = to_json(good());
  ModelConfig::from_json(text, "x.json");
  bad("", "x.json: not valid JSON");
  bad("[]", "JSON object");
  bad(text.substr(0, text.size() - 1), "not valid JSON");
  bad(text + "x", "not valid JSON");
  bad("{\"a\":NaN}", "not valid JSON");
  bad("{\"a\":1e999}", "not valid JSON");
  bad("{\"a\":\"\xff\"}", "not valid JSON");
  bad("{\"a\":" + std::string(100000, '[') + "}", "levels of nesting");
  bad("{\"hidden_size\":64," + text.substr(1), "'hidden_size' twice");
  bad("{\"a\":{\"b\":1,\"b\":1}," + text.substr(1), "'b' twice");
  bad("{\"quantization_config\":3}", "expected");
  bad(std::string((1 << 20) + 1, ' '), "at most 1048576 bytes");
  ModelConfig::from_json("{\"a\":{\"b\":1},\"c\":{\"b\":1}," + text.substr(1), "x.json");
  refused(with(good(), "rope_scaling", "{\"factor\":2}"), ErrorCode::unsupported_shape,
          "rope_scaling", __LINE__);
  REFUSED(with(good(), "quantization_config", "{}"), "quantization_config");
}

TEST_CASE("config.json is read from a directory") {
  const writer::TempDir dir;
  CHECK_THROWS(io, "config.json", ModelConfig::from_directory(dir.path()));
  dir.write("config.json", to_json(good()));
  CHECK_EQ(ModelConfig::from_directory(dir.path()).hidden_size, 64u);
  dir.write("config.json", std::string((1 << 20) + 1, ' '));
  CHECK_THROWS(bad_format, "1048576", ModelConfig::from_directory(dir.path()));
  std::filesystem::remove(dir.path() / "config.json");
  std::filesystem::create_symlink("/dev/zero", dir.path() / "config.json");
  CHECK_THROWS(bad_format, "symlink", ModelConfig::from_directory(dir.path()));
}

TEST_CASE("end tokens are those of config.json and of generation_config.json") {
  using Ids = std::vector<int32_t>;
  const writer::TempDir dir;
  const auto ids = [&](const std::string& generation) {
    dir.write("generation_config.json", generation);
    return ModelConfig::from_directory(dir.path()).eos_token_ids;
  };
  dir.write("config.json", to_json(without(good(), "eos_token_id")));
  CHECK(ModelConfig::from_directory(dir.path()).eos_token_ids.empty());
  CHECK(ids("{}").empty());
  CHECK(ids("{\"temperature\":1.0,\"eos_token_id\":null}").empty());
  CHECK(ids("{\"eos_token_id\":5}") == Ids{5});
  dir.write("config.json", to_json(good()));
  CHECK(ids("{\"eos_token_id\":[11,9,3]}") == (Ids{3, 7, 9, 11}));
  CHECK(ids("{\"eos_token_id\":[]}") == (Ids{7, 9}));

  const auto bad = [&](const std::string& generation, const std::string& needle) {
    CHECK_THROWS(bad_format, "[ModelConfig.from_directory] generation_config.json: " + needle, ids(generation));
  };
  for (const char* value : {"-1", "2147483648", "1.5", "true", "\"</s>\"", "[1,\"x\"]", "[[1]]", "{}"})
    bad(std::string("{\"eos_token_id\":") + value + "}", "eos_token_id: expected an integer or a list of integers");
  bad("{", "not valid JSON");
  bad("[]", "expected a JSON object");
  bad("{\"eos_token_id\":1,\"eos_token_id\":2}", "expected each key once");
  CHECK_THROWS(bad_format, "1048576", ids(std::string((1 << 20) + 1, ' ')));
  std::filesystem::remove(dir.path() / "generation_config.json");
  std::filesystem::create_symlink("../blobs/0123", dir.path() / "generation_config.json");
  CHECK_THROWS(io, "generation_config.json", ModelConfig::from_directory(dir.path()));
}

CHECK_MAIN()
