// Which tensors a config implies: the published inventory of the 70-layer model, tiny checkpoints
// of every layout, and the rows that find_matrix gives against vectors worked out by hand.
#include "check.h"
#include "checkpoint/scan.h"
#include "checkpoint/tensor_table.h"
#include "core/numeric.h"
#include "safetensors_writer.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>

namespace {

using mimo_rt::Checkpoint;
using mimo_rt::DType;
using mimo_rt::Error;
using mimo_rt::ErrorCode;
using mimo_rt::ExpectedTensor;
using mimo_rt::MatrixKind;
using mimo_rt::MatrixSource;
using mimo_rt::ModelConfig;
using mimo_rt::VectorKind;
using writer::make_file;
using writer::Tensor;
using writer::TempDir;

std::string join(const std::vector<int>& values) {
  std::string out = "[";
  for (size_t i = 0; i < values.size(); ++i) out += (i ? "," : "") + std::to_string(values[i]);
  return out + "]";
}

// The published config of MiMo-V2.5-Pro, FP8 or with MXFP4 experts.
ModelConfig pro_config(bool mxfp4) {
  std::vector<int> pattern(70, 1), moe(70, 1);
  for (const size_t full : {0, 7, 15, 23, 31, 39, 47, 55, 62, 69}) pattern[full] = 0;
  moe[0] = 0;
  std::string ignored;
  for (int i = 0; i < 70; ++i)
    ignored += "\"model.layers." + std::to_string(i) + ".self_attn.o_proj\",";
  const std::string quantization =
      "{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\",\"activation_scheme\":\"dynamic\","
      "\"weight_block_size\":[128,128],\"ignored_layers\":[" + ignored +
      "\"model.decoder.self_attn.o_proj\"]" +
      (mxfp4 ? ",\"store_dtype\":\"mxfp4\",\"mxfp4_block_size\":32}" : "}");
  return ModelConfig::from_json(
      "{\"model_type\":\"mimo_v2\",\"hidden_size\":6144,\"num_hidden_layers\":70,"
      "\"vocab_size\":152576,\"intermediate_size\":16384,\"max_position_embeddings\":1048576,"
      "\"layernorm_epsilon\":1e-5,\"num_attention_heads\":128,\"num_key_value_heads\":8,"
      "\"head_dim\":192,\"v_head_dim\":128,\"swa_num_attention_heads\":128,"
      "\"swa_num_key_value_heads\":8,\"swa_head_dim\":192,\"swa_v_head_dim\":128,"
      "\"rope_theta\":10000000,\"swa_rope_theta\":10000,\"partial_rotary_factor\":0.334,"
      "\"sliding_window\":128,\"sliding_window_size\":128,\"attention_chunk_size\":128,"
      "\"add_swa_attention_sink_bias\":true,\"add_full_attention_sink_bias\":false,"
      "\"attention_projection_layout\":\"fused_qkv\",\"attention_value_scale\":0.612,"
      "\"hybrid_block_size\":null,\"n_shared_experts\":null,\"routed_scaling_factor\":null,"
      "\"n_routed_experts\":384,\"num_experts_per_tok\":8,\"moe_intermediate_size\":2048,"
      "\"hybrid_layer_pattern\":" + join(pattern) + ",\"moe_layer_freq\":" + join(moe) +
      ",\"quantization_config\":" + quantization + "}", "config.json");
}

/// A tiny config; `more` begins with a comma.
ModelConfig tiny_config(const std::string& model_type, const std::string& more) {
  return ModelConfig::from_json(
      "{\"model_type\":\"" + model_type + "\",\"hidden_size\":160,\"num_hidden_layers\":2,"
      "\"vocab_size\":20,\"intermediate_size\":136,\"max_position_embeddings\":64,"
      "\"layernorm_epsilon\":1e-5,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
      "\"head_dim\":96,\"v_head_dim\":40,\"rope_theta\":10000,\"swa_rope_theta\":10000,"
      "\"partial_rotary_factor\":0.334,\"sliding_window\":4,\"add_swa_attention_sink_bias\":true,"
      "\"hybrid_layer_pattern\":[0,1],\"moe_layer_freq\":[0,1],\"n_routed_experts\":2,"
      "\"num_experts_per_tok\":1,\"moe_intermediate_size\":32" + more + "}", "config.json");
}

const std::string kFp8 =
    ",\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}";
const std::string kMxfp4 =
    ",\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128],"
    "\"store_dtype\":\"mxfp4\",\"mxfp4_block_size\":32,\"ignored_layers\":[\"o_proj\"]}";

std::string file_dtype(DType dtype) {
#define MIMO_RT_X(name, bits, text) \
  if (dtype == DType::name) return text;
  MIMO_RT_DTYPES(MIMO_RT_X)
#undef MIMO_RT_X
  return "";
}

/// Tensors of the first form that a config expects; byte i of a tensor is i * 37 % 101.
std::vector<Tensor> make_tensors(const ModelConfig& config) {
  std::vector<Tensor> tensors;
  for (const ExpectedTensor& expected : mimo_rt::expected_tensors(config)) {
    const mimo_rt::TensorForm& form = expected.forms[0];
    uint64_t bits = mimo_rt::dtype_bits(form.dtypes[0]);
    for (const uint64_t dim : form.shape) bits *= dim;
    std::string data(bits / 8, '\0');
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 37 % 101);
    tensors.push_back({expected.name, file_dtype(form.dtypes[0]), form.shape, std::move(data)});
  }
  return tensors;
}

Tensor& find(std::vector<Tensor>& tensors, const std::string& name) {
  return *std::find_if(tensors.begin(), tensors.end(),
                       [&](const Tensor& tensor) { return tensor.name == name; });
}

void set_shape(Tensor& tensor, const std::string& dtype, const std::vector<uint64_t>& shape,
               uint64_t bytes) {
  tensor = {tensor.name, dtype, shape, std::string(bytes, '\1')};
}

Checkpoint write_and_open(const TempDir& dir, const std::vector<Tensor>& tensors) {
  dir.write("model.safetensors", make_file(tensors));
  return Checkpoint::open(dir.path());
}

}  // namespace

TEST_CASE("the published inventory of the 70-layer model") {
  const std::vector<ExpectedTensor> fp8 = mimo_rt::expected_tensors(pro_config(false));
  const std::vector<ExpectedTensor> fp4 = mimo_rt::expected_tensors(pro_config(true));
  CHECK_EQ(fp8.size(), size_t{159581 - 48});  // less the three multi-token-prediction layers
  CHECK_EQ(fp4.size(), fp8.size());
  std::map<std::string, std::vector<uint64_t>> shapes;
  uint64_t u8 = 0, fp8_elements = 0, f32_scales = 0;
  for (const ExpectedTensor& tensor : fp4) {
    uint64_t elements = 1;
    for (const uint64_t dim : tensor.forms[0].shape) elements *= dim;
    const DType dtype = tensor.forms[0].dtypes[0];
    if (dtype == DType::u8) u8 += elements;
    if (dtype == DType::fp8_e4m3) fp8_elements += elements;
    if (tensor.name.ends_with("_scale_inv")) f32_scales += elements;
    shapes[tensor.name] = tensor.forms[0].shape;
  }
  // Published totals of the FP4 repository; its three MTP layers hold 3 qkv and 3 dense MLPs more.
  CHECK_EQ(u8, uint64_t{531351207936});
  CHECK_EQ(fp8_elements, uint64_t{13378781184} - 3 * (27136ull * 6144 + 3ull * 16384 * 6144));
  CHECK_EQ(f32_scales, uint64_t{216} * 48 * 70 + 3 * 128 * 48);
  using Shape = std::vector<uint64_t>;
  CHECK(shapes["model.layers.5.self_attn.qkv_proj.weight"] == (Shape{27136, 6144}));
  CHECK(shapes["model.layers.5.self_attn.qkv_proj.weight_scale_inv"] == (Shape{216, 48}));
  CHECK(shapes["model.layers.5.mlp.experts.383.gate_proj.weight"] == (Shape{2048, 3072}));
  CHECK(shapes["model.layers.5.mlp.experts.383.down_proj.weight_scale"] == (Shape{6144, 64}));
  CHECK(shapes["model.layers.0.mlp.down_proj.weight_scale_inv"] == (Shape{48, 128}));
  CHECK(shapes["model.layers.1.self_attn.attention_sink_bias"] == (Shape{128}));
  CHECK_EQ(shapes.count("model.layers.7.self_attn.attention_sink_bias"), size_t{0});
  CHECK_EQ(shapes.count("model.layers.7.self_attn.o_proj.weight_scale_inv"), size_t{0});
}

TEST_CASE("checkpoints of every layout validate; any change does not") {
  const std::string fused = ",\"attention_projection_layout\":\"fused_qkv\"";
  for (const std::string& more :
       {std::string(), fused, kFp8, fused + kFp8, fused + kMxfp4,
        std::string(",\"tie_word_embeddings\":true"), kMxfp4}) {
    const ModelConfig config = tiny_config(fused == more ? "mimo_v2" : "mimo_v2_flash", more);
    const TempDir dir;
    const std::vector<Tensor> tensors = make_tensors(config);
    write_and_open(dir, tensors).validate(config);
    std::vector<Tensor> changed = tensors;
    for (const char* unused : {"model.mtp.layers.0.enorm.weight", "visual.blocks.0.attn.qkv.weight",
                               "audio_encoder.projection.0.weight", "speech_embeddings.0.weight"})
      changed.push_back({unused, "BF16", {1}, "ab"});
    write_and_open(dir, changed).validate(config);
    for (const char* extra : {"model.layers.0.extra.weight", "model.visual.weight"}) {
      changed.back().name = extra;
      CHECK_THROWS(bad_format, "'" + changed.back().name + "'",
                   write_and_open(dir, changed).validate(config));
    }
    for (size_t i = 0; i < tensors.size(); ++i) {
      changed = tensors;
      changed[i].name += "x";
      CHECK_THROWS(missing_tensor, "'" + tensors[i].name + "'",
                   write_and_open(dir, changed).validate(config));
      changed = tensors;
      changed[i].shape.push_back(1);
      CHECK_THROWS(shape_mismatch, "'" + tensors[i].name + "'",
                   write_and_open(dir, changed).validate(config));
      changed = tensors;
      changed[i] = {tensors[i].name, "BOOL", {tensors[i].data.size()}, tensors[i].data};
      CHECK_THROWS(shape_mismatch, "got boolean", write_and_open(dir, changed).validate(config));
    }
  }
}

TEST_CASE("a config whose fields were changed and do not fit is refused by name") {
  const TempDir dir;
  const ModelConfig config = tiny_config("mimo_v2", ",\"attention_projection_layout\":\"fused_qkv\"" + kFp8);
  const Checkpoint checkpoint = write_and_open(dir, make_tensors(config));
  const auto check = [&](const std::string& said, const std::function<void(ModelConfig&)>& change) {
    ModelConfig changed = config;
    change(changed);
    CHECK_THROWS(unsupported_shape, said, checkpoint.validate(changed));
  };
  checkpoint.validate(config);
  check("layers: expected 2 entries, got 0", [](ModelConfig& c) { c.layers.clear(); });
  check("layers: expected 100 entries, got 2", [](ModelConfig& c) { c.num_layers = 100; });
  check("hidden_size: expected 1..2^31, got 0", [](ModelConfig& c) { c.hidden_size = 0; });
  check("qkv_chunks: expected 1..2^31, got 0", [](ModelConfig& c) { c.qkv_chunks = 0; });
  check("expected multiples of qkv_chunks 3, got 4 and 2", [](ModelConfig& c) { c.qkv_chunks = 3; });
  check("fp8_block_rows", [](ModelConfig& c) { c.fp8_block_rows = 0; });
  check("fp8_block_cols", [](ModelConfig& c) { c.fp8_block_cols = 0; });
  check("num_q_heads", [](ModelConfig& c) { c.layers[1].num_q_heads = 0; });
  check("num_kv_heads", [](ModelConfig& c) { c.layers[1].num_kv_heads = 0; });
  check("qk_head_dim", [](ModelConfig& c) { c.layers[0].qk_head_dim = 0; });
  check("v_head_dim", [](ModelConfig& c) { c.layers[0].v_head_dim = ~0u; });
  check("intermediate_size", [](ModelConfig& c) { c.intermediate_size = 0; });
  check("num_experts: expected at most 262144 in all layers, got 4294967295 in each of 1",
        [](ModelConfig& c) { c.num_experts = ~0u; });
  check("expert_intermediate_size", [](ModelConfig& c) { c.expert_intermediate_size = 0; });
}

TEST_CASE("at most ten differences are listed") {
  const TempDir dir;
  const ModelConfig config = tiny_config("mimo_v2_flash", "");
  const Checkpoint empty = write_and_open(dir, {{"x", "U8", {1}, "a"}});
  const size_t num_expected = mimo_rt::expected_tensors(config).size();
  CHECK_THROWS(missing_tensor, "and " + std::to_string(num_expected + 1 - 10) + " more",
               empty.validate(config));
}

TEST_CASE("of a million differences ten are listed and all are counted") {
  const TempDir dir;
  ModelConfig config = tiny_config("mimo_v2_flash", "");
  config.num_layers = 4;
  config.num_experts = 65535;
  config.layers.assign(4, config.layers[1]);
  const Checkpoint empty = write_and_open(dir, {{"x", "U8", {1}, "a"}});
  const size_t num_expected = mimo_rt::expected_tensors(config).size();
  CHECK(num_expected > 4 * 3 * 65535);
  CHECK_THROWS(missing_tensor, "and " + std::to_string(num_expected + 1 - 10) + " more",
               empty.validate(config));
}

TEST_CASE("other forms that are allowed") {
  const TempDir dir;
  const ModelConfig config = tiny_config("mimo_v2_flash", kMxfp4);
  std::vector<Tensor> tensors = make_tensors(config);
  const std::string expert = "model.layers.1.mlp.experts.0.gate_proj.weight";
  set_shape(find(tensors, expert), "F4", {32, 160}, 32 * 80);
  set_shape(find(tensors, expert + "_scale"), "F8_E8M0", {32, 5}, 32 * 5);
  set_shape(find(tensors, "model.layers.1.mlp.gate.weight"), "F32", {2, 160}, 2 * 160 * 4);
  set_shape(find(tensors, "model.layers.1.self_attn.attention_sink_bias"), "F32", {4}, 16);
  // 2 heads of 96 rows: 2 scale rows either way; the wide config below tells them apart.
  const Checkpoint checkpoint = write_and_open(dir, tensors);
  checkpoint.validate(config);
  const MatrixSource source =
      mimo_rt::find_matrix(checkpoint, config, MatrixKind::expert_gate_proj, 1, 0);
  CHECK_EQ(source.row_data(3).size(), size_t{80});
  CHECK_EQ(source.row_scales(3).size(), size_t{5});
  CHECK_EQ(source.row_data(3).data() - source.weight->data.data(), 3 * 80);
}

TEST_CASE("k_proj scale rows may restart at each head") {
  const std::string wide = ",\"swa_num_key_value_heads\":4,\"swa_head_dim\":192" + kFp8;
  const ModelConfig config = tiny_config("mimo_v2_flash", wide);
  const std::string name = "model.layers.1.self_attn.k_proj.weight_scale_inv";
  const TempDir dir;
  std::vector<Tensor> tensors = make_tensors(config);
  CHECK(find(tensors, name).shape == (std::vector<uint64_t>{6, 2}));  // 768 rows
  const Checkpoint plain = write_and_open(dir, tensors);
  plain.validate(config);
  CHECK_EQ(mimo_rt::find_matrix(plain, config, MatrixKind::k_proj, 1).scale_row(192), uint64_t{1});

  set_shape(find(tensors, name), "F32", {8, 2}, 8 * 2 * 4);  // 4 heads x 2 blocks
  const Checkpoint restarting = write_and_open(dir, tensors);
  restarting.validate(config);
  const MatrixSource k = mimo_rt::find_matrix(restarting, config, MatrixKind::k_proj, 1);
  CHECK_EQ(k.scale_row(127), uint64_t{0});
  CHECK_EQ(k.scale_row(128), uint64_t{1});
  CHECK_EQ(k.scale_row(192), uint64_t{2});
  CHECK_EQ(k.scale_row(767), uint64_t{7});

  set_shape(find(tensors, name), "F32", {7, 2}, 7 * 2 * 4);
  CHECK_THROWS(shape_mismatch, name, write_and_open(dir, tensors).validate(config));
}

TEST_CASE("k_proj scales that may mean two things are refused, on full layers alone") {
  const auto k_of = [](const std::string& more, uint32_t layer) {
    const ModelConfig config = tiny_config("mimo_v2_flash", more);
    const TempDir dir;
    const Checkpoint checkpoint = write_and_open(dir, make_tensors(config));
    checkpoint.validate(config);
    return mimo_rt::find_matrix(checkpoint, config, MatrixKind::k_proj, layer).scale_run_rows;
  };
  // 2 heads of 96 rows: 2 scale rows either way, of which row 96 has another one each way.
  CHECK_THROWS(unsupported_shape, "'model.layers.0.self_attn.k_proj.weight_scale_inv'",
               k_of(kFp8, 0));
  CHECK_EQ(k_of(kFp8, 1), uint64_t{192});  // a window layer
  // Whole blocks, one head, another number of rows, no scales: nothing to doubt.
  CHECK_EQ(k_of("", 0), uint64_t{192});
  for (const auto& [head_dim, heads] :
       {std::pair{128, 2}, {256, 2}, {96, 1}, {192, 2}, {48, 2}}) {
    ModelConfig config = tiny_config("mimo_v2_flash", kFp8);
    config.layers[0].qk_head_dim = static_cast<uint32_t>(head_dim);
    config.layers[0].num_kv_heads = static_cast<uint32_t>(heads);
    const TempDir dir;
    const Checkpoint checkpoint = write_and_open(dir, make_tensors(config));
    const MatrixSource k = mimo_rt::find_matrix(checkpoint, config, MatrixKind::k_proj, 0);
    CHECK_EQ(k.scale_run_rows, static_cast<uint64_t>(head_dim * heads));
  }
}

TEST_CASE("rows of the fused qkv: the worked vectors of the 70-layer model") {
  // The same arithmetic with 8 chunks of 3392 rows: only names and shapes are needed, not bytes.
  MatrixSource q, k, v;
  q.piece_rows = 16 * 192;
  k.first_row = 3072;
  k.piece_rows = 192;
  v.first_row = 3264;
  v.piece_rows = 128;
  for (MatrixSource* source : {&q, &k, &v}) {
    source->piece_stride = source->scale_run_rows = 3392;
    source->scale_block_rows = 128;
  }
  CHECK_EQ(q.stored_row(17 * 192), uint64_t{3584});
  CHECK_EQ(q.scale_row(17 * 192), uint64_t{28});
  CHECK_EQ(k.stored_row(3 * 192 + 191), uint64_t{13439});
  CHECK_EQ(k.scale_row(3 * 192 + 191), uint64_t{106});
  CHECK_EQ(v.stored_row(3 * 128), uint64_t{13440});
  CHECK_EQ(v.scale_row(3 * 128), uint64_t{106});
  CHECK_EQ(v.stored_row(7 * 128 + 127), uint64_t{27135});
  CHECK_EQ(v.scale_row(7 * 128 + 127), uint64_t{215});
}

TEST_CASE("q, k and v cover the fused tensor once, and scales stay inside") {
  for (const char* heads : {"", ",\"swa_num_key_value_heads\":4"}) {
    const ModelConfig config = tiny_config(
        "mimo_v2", std::string(heads) + ",\"attention_projection_layout\":\"fused_qkv\"" + kFp8);
    const TempDir dir;
    const Checkpoint checkpoint = write_and_open(dir, make_tensors(config));
    checkpoint.validate(config);
    for (uint32_t layer = 0; layer < 2; ++layer) {
      std::set<uint64_t> rows;
      const auto* stored = checkpoint.find("model.layers." + std::to_string(layer) +
                                           ".self_attn.qkv_proj.weight");
      for (const MatrixKind kind : {MatrixKind::q_proj, MatrixKind::k_proj, MatrixKind::v_proj}) {
        const MatrixSource part = mimo_rt::find_matrix(checkpoint, config, kind, layer);
        for (uint64_t row = 0; row < part.rows; ++row) {
          CHECK(rows.insert(part.stored_row(row)).second);
          CHECK_EQ(part.row_data(row).size(), size_t{160});
          CHECK_EQ(part.row_scales(row).size(), size_t{8});  // throws nothing, reads inside
          CHECK(part.scale_row(row) < part.scale->shape[0]);
        }
      }
      CHECK_EQ(rows.size(), stored->shape[0]);
      CHECK_EQ(*rows.rbegin() + 1, stored->shape[0]);
    }
  }
}

TEST_CASE("stacked experts and short sink names of transformers") {
  const ModelConfig config = tiny_config("mimo_v2_flash", "");
  const TempDir dir;
  const std::vector<Tensor> vendor = make_tensors(config);
  std::vector<Tensor> stacked;
  const std::string experts = "model.layers.1.mlp.experts.";
  std::string gate_up, down;
  for (const char* expert : {"0.", "1."}) {
    std::vector<Tensor> copy = vendor;
    gate_up += find(copy, experts + expert + "gate_proj.weight").data;
    gate_up += std::string(32 * 160 * 2, expert[0]);  // the up rows
    down += std::string(160 * 32 * 2, expert[0]);
  }
  for (const Tensor& tensor : vendor)
    if (tensor.name.find(".mlp.experts.") == std::string::npos) stacked.push_back(tensor);
  stacked.push_back({experts + "gate_up_proj", "BF16", {2, 64, 160}, gate_up});
  stacked.push_back({experts + "down_proj", "BF16", {2, 160, 32}, down});
  find(stacked, "model.layers.1.self_attn.attention_sink_bias").name =
      "model.layers.1.self_attn.sinks";
  const Checkpoint checkpoint = write_and_open(dir, stacked);
  checkpoint.validate(config);
  const auto row = [&](MatrixKind kind, uint64_t index) {
    const auto data = mimo_rt::find_matrix(checkpoint, config, kind, 1, 1).row_data(index);
    return std::string(reinterpret_cast<const char*>(data.data()), data.size());
  };
  CHECK(row(MatrixKind::expert_up_proj, 31) == std::string(320, '1'));
  CHECK(row(MatrixKind::expert_down_proj, 159) == std::string(64, '1'));
  std::vector<Tensor> copy = vendor;
  CHECK(row(MatrixKind::expert_gate_proj, 2) ==
        find(copy, experts + "1.gate_proj.weight").data.substr(2 * 320, 320));
  CHECK_EQ(mimo_rt::find_vector(checkpoint, VectorKind::sink_logits, 1).shape[0], uint64_t{4});
}

TEST_CASE("scans find exactly the forbidden codes, wherever they are") {
  const auto as_bytes = [](const std::vector<uint8_t>& v) { return std::as_bytes(std::span(v)); };
  for (int code = 0; code < 256; ++code) {
    const std::vector<uint8_t> one = {static_cast<uint8_t>(code)};
    CHECK_EQ(mimo_rt::find_e8m0_nan(as_bytes(one)).has_value(),
             std::isnan(mimo_rt::e8m0_to_f32(one[0])));
    CHECK_EQ(mimo_rt::find_fp8_e4m3_nan(as_bytes(one)).has_value(),
             std::isnan(mimo_rt::fp8_e4m3_to_f32(one[0])));
    const std::vector<uint8_t> eight(8, one[0]);
    CHECK_EQ(mimo_rt::find_fp8_e4m3_nan(as_bytes(eight)).has_value(),
             std::isnan(mimo_rt::fp8_e4m3_to_f32(one[0])));
  }
  for (const size_t position : {0, 1, 7, 8, 4095, 4096, 9998}) {
    std::vector<uint8_t> bytes(9999 + 4, 0x7e);
    bytes[position] = 0xff;
    CHECK(mimo_rt::find_fp8_e4m3_nan(as_bytes(bytes)) == position);
    CHECK(mimo_rt::find_e8m0_nan(as_bytes(bytes)) == position);
    std::vector<float> floats(10000, 1.0f);
    floats[position] = position % 2 ? NAN : -INFINITY;
    CHECK(mimo_rt::find_nonfinite_f32(std::as_bytes(std::span(floats))) == position);
    std::vector<uint16_t> halves(10000, 0x3f80);
    CHECK(!mimo_rt::find_nonfinite_bf16(std::as_bytes(std::span(halves))));
    halves[position] = 0xff80;
    CHECK(mimo_rt::find_nonfinite_bf16(std::as_bytes(std::span(halves))) == position);
    halves.assign(10000, 0x7bff);
    halves[position] = 0x7c00;
    CHECK(mimo_rt::find_nonfinite_f16(std::as_bytes(std::span(halves))) == position);
  }
  const std::string data = std::string(5, '\x7f') + "\xff";
  const mimo_rt::TensorInfo tensor{"scales", DType::u8, {6}, std::as_bytes(std::span(data)), "f"};
  CHECK_THROWS(bad_format, "element 5: expected a finite e8m0, got code 0xff",
               mimo_rt::check_finite(tensor, DType::e8m0));
  mimo_rt::check_finite(tensor, DType::u8);
}

CHECK_MAIN()
