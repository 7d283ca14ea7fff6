// DraftWeights: every packed row against the stored bytes, both spellings of names, with and without an
// index, drafts that must be refused, and the synthetic ones.
#include "weights/draft_weights.h"

#include "check.h"
#include "core/numeric.h"
#include "draft_fixture.h"
#include "weights/pack.h"

#include <cmath>

namespace {

using namespace fixture;

DraftWeights load(const writer::TempDir& dir, const DraftConfig& config, uint32_t num_threads = 2) {
  Weights::Options options;
  options.num_threads = num_threads;
  return DraftWeights::load(dir.path(), config, options);
}

double element(const TensorInfo& tensor, uint64_t i) {
  if (tensor.dtype == DType::f32) {
    float value;
    std::memcpy(&value, tensor.data.data() + i * 4, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, tensor.data.data() + i * 2, 2);
  if (tensor.dtype == DType::bf16) return bf16_to_f32(bits);
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;  // F16
  const double magnitude = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return bits & 0x8000 ? -magnitude : magnitude;
}

/// Number of elements in which packed rows [first_row, ...) differ from rows of `tensor`; `take` is how
/// many rows follow each other before `skip` packed rows of another tensor come.
uint64_t num_different(const PackedMatrix& matrix, const TensorInfo& tensor, uint32_t first_row,
                       uint32_t take = 1, uint32_t skip = 0) {
  const auto rows = static_cast<uint32_t>(tensor.shape[0]), k = static_cast<uint32_t>(tensor.shape[1]);
  uint64_t different = 0;
  for (uint32_t row = 0; row < rows; ++row) {
    const uint32_t packed_row = first_row + row / take * (take + skip) + row % take;
    const UnpackedRow unpacked = unpack_row(matrix, packed_row);
    const DType dtype = matrix.format == PackedFormat::f32 ? DType::f32 : DType::bf16;
    const TensorInfo got{"", dtype, {k}, unpacked.codes, ""};
    for (uint32_t i = 0; i < k; ++i) different += element(got, i) != element(tensor, uint64_t{row} * k + i);
  }
  return different;
}

uint64_t num_different(const float* values, const TensorInfo& tensor) {
  uint64_t different = 0;
  for (uint64_t i = 0; i < tensor.shape[0]; ++i) different += values[i] != element(tensor, i);
  return different;
}

/// Compares everything that `weights` holds with the files.
uint64_t num_different(const DraftWeights& weights, const Checkpoint& files, const std::string& prefix) {
  const DraftConfig& config = weights.config();
  const auto at = [&](const std::string& name) -> const TensorInfo& { return files.at(prefix + name); };
  uint64_t sum = num_different(weights.fc(), at("fc.weight"), 0);
  sum += num_different(weights.hidden_norm(), at("hidden_norm.weight"));
  sum += num_different(weights.final_norm(), at("norm.weight"));
  for (uint32_t i = 0; i < config.num_layers; ++i) {
    const DraftLayerWeights& layer = weights.layer(i);
    const std::string in = "layers." + std::to_string(i) + ".", attn = in + "self_attn.";
    const uint32_t q_rows = config.num_q_heads * config.qk_head_dim;
    const uint32_t k_rows = config.num_kv_heads * config.qk_head_dim;
    CHECK_EQ(layer.qkv.rows, q_rows + k_rows + config.num_kv_heads * config.v_head_dim);
    sum += num_different(layer.qkv, at(attn + "q_proj.weight"), 0);
    sum += num_different(layer.qkv, at(attn + "k_proj.weight"), q_rows);
    sum += num_different(layer.qkv, at(attn + "v_proj.weight"), q_rows + k_rows);
    sum += num_different(layer.o_proj, at(attn + "o_proj.weight"), 0);
    sum += num_different(layer.gate_up, at(in + "mlp.gate_proj.weight"), 0, 16, 16);
    sum += num_different(layer.gate_up, at(in + "mlp.up_proj.weight"), 16, 16, 16);
    sum += num_different(layer.down, at(in + "mlp.down_proj.weight"), 0);
    sum += num_different(layer.attn_norm, at(in + "input_layernorm.weight"));
    sum += num_different(layer.mlp_norm, at(in + "post_attention_layernorm.weight"));
    if (config.has_qk_norm) sum += num_different(layer.q_norm, at(attn + "q_norm.weight"));
    if (config.has_qk_norm) sum += num_different(layer.k_norm, at(attn + "k_norm.weight"));
    if (config.has_sink) sum += num_different(layer.sink_logits, at(attn + "attention_sink_bias"));
  }
  return sum;
}

std::string packed_bytes(const DraftWeights& weights) {
  std::string bytes;
  const auto add = [&](const PackedMatrix& m) { bytes.append(reinterpret_cast<const char*>(m.data), m.bytes()); };
  add(weights.fc());
  for (uint32_t i = 0; i < weights.config().num_layers; ++i) {
    const DraftLayerWeights& layer = weights.layer(i);
    for (const PackedMatrix* m : {&layer.qkv, &layer.o_proj, &layer.gate_up, &layer.down}) add(*m);
  }
  bytes.append(reinterpret_cast<const char*>(weights.mask_embedding()), weights.config().hidden_size * 2);
  return bytes;
}

}  // namespace

TEST_CASE("a loaded draft holds what its files hold, under either spelling") {
  const DraftConfig config = small_draft();
  for (const std::string prefix : {"", "model."})
    for (const bool has_index : {true, false}) {
      const writer::TempDir dir;
      write_draft(dir, config, {prefix, has_index});
      const DraftWeights weights = load(dir, config);
      const Checkpoint files = open_draft(dir.path(), {});
      CHECK_EQ(num_different(weights, files, prefix), 0u);
      CHECK(weights.fc().format == PackedFormat::bf16);
      CHECK_EQ(weights.fc().k, 224u);  // 3 * 72, padded
      for (uint32_t i = 0; i < config.hidden_size; ++i)
        CHECK_EQ(weights.mask_embedding()[i], 0x3f00 + i);
      CHECK(packed_bytes(weights) == packed_bytes(load(dir, config, 1)));
    }
}

TEST_CASE("the comparison sees a wrong order of q, k and v") {
  const DraftConfig config = small_draft();
  const writer::TempDir dir;
  write_draft(dir, config);
  const DraftWeights weights = load(dir, config);
  const Checkpoint files = open_draft(dir.path(), {});
  CHECK(num_different(weights.layer(0).qkv, files.at("layers.0.self_attn.k_proj.weight"), 0) > 1000);
  CHECK(num_different(weights.layer(0).gate_up, files.at("layers.0.mlp.up_proj.weight"), 0, 16, 16) > 1000);
  CHECK(num_different(weights.layer(0).gate_up, files.at("layers.0.mlp.gate_proj.weight"), 0) > 1000);
}

TEST_CASE("a plain draft has neither sinks nor, when its config says so, q and k norms") {
  DraftConfig config = small_draft();
  config.has_sink = config.has_qk_norm = false;
  const writer::TempDir dir;
  write_draft(dir, config);
  const DraftWeights weights = load(dir, config);
  CHECK_EQ(num_different(weights, open_draft(dir.path(), {}), ""), 0u);
  CHECK(!weights.layer(0).sink_logits && !weights.layer(0).q_norm && !weights.layer(0).k_norm);
  CHECK_THROWS(missing_tensor, "layers.0.self_attn.attention_sink_bias", load(dir, small_draft()));
}

TEST_CASE("F16 and F32 matrices keep every value") {
  const DraftConfig config = small_draft();
  const writer::TempDir dir;
  DraftFiles files;
  for (const char* name : {"fc.weight", "layers.0.self_attn.k_proj.weight", "norm.weight"})
    files.dtypes[name] = DType::f32;
  for (const char* name : {"layers.1.mlp.up_proj.weight", "layers.1.self_attn.q_norm.weight"})
    files.dtypes[name] = DType::f16;
  write_draft(dir, config, files);
  const DraftWeights weights = load(dir, config);
  CHECK_EQ(num_different(weights, open_draft(dir.path(), {}), ""), 0u);
  CHECK(weights.fc().format == PackedFormat::f32);
  CHECK(weights.layer(0).qkv.format == PackedFormat::f32);
  CHECK(weights.layer(1).gate_up.format == PackedFormat::f32);
  CHECK(weights.layer(1).qkv.format == PackedFormat::bf16);
}

TEST_CASE("missing, misshapen, unknown and non-finite tensors are refused by name") {
  const DraftConfig config = small_draft();
  const writer::TempDir dir;
  write_draft(dir, config, {"", false});
  DraftConfig other = config;
  other.num_layers = 3;
  CHECK_THROWS(missing_tensor, "'layers.2.input_layernorm.weight'", load(dir, other));
  other = config;
  other.num_layers = 1;
  CHECK_THROWS(bad_format, "'layers.1.input_layernorm.weight' of 'anything.safetensors': expected no such",
               load(dir, other));
  other = config;
  other.target_layer_ids = {0, 1};
  CHECK_THROWS(shape_mismatch,
               "'fc.weight' of 'anything.safetensors': expected bf16|f32|f16 [72, 144], got bf16 [72, 216]",
               load(dir, other));
  const auto poison = [](const std::string& name, std::string& bytes) {
    if (name == "layers.1.mlp.down_proj.weight") bytes[7] = '\x7f', bytes[6] = '\xc0';
  };
  write_draft(dir, config, {"", false, {}, poison});
  CHECK_THROWS(bad_format, "'layers.1.mlp.down_proj.weight' of 'anything.safetensors', element 3", load(dir, config));
  const auto poison_norm = [](const std::string& name, std::string& bytes) {
    if (name == "norm.weight") bytes[1] = '\x7f', bytes[0] = '\x80';
  };
  write_draft(dir, config, {"", false, {}, poison_norm});
  CHECK_THROWS(bad_format, "'norm.weight' of 'anything.safetensors', element 0", load(dir, config));
}

TEST_CASE("a directory without exactly one draft is refused") {
  const DraftConfig config = small_draft();
  const writer::TempDir dir;
  CHECK_THROWS(io, "expected model.safetensors.index.json or one file *.safetensors", load(dir, config));
  write_draft(dir, config, {"", false});
  load(dir, config);
  std::filesystem::copy_file(dir.path() / "anything.safetensors", dir.path() / "else.safetensors");
  CHECK_THROWS(io, "found 2 files: 'anything.safetensors', 'else.safetensors'", load(dir, config));
}

TEST_CASE("the mask embedding has three places; none is a clear error") {
  const DraftConfig config = small_draft();
  const writer::TempDir dir;
  write_draft(dir, config, {"", false});
  const auto own_file = dir.path() / "mask_embedding.safetensors";
  std::filesystem::remove(own_file);
  CHECK_THROWS(missing_tensor, "expected mask_embedding.safetensors, mask_embedding.pt or a tensor", load(dir, config));
  CHECK_THROWS(missing_tensor, "Copy the file from where the draft was published", load(dir, config));

  std::vector<ExpectedTensor> tensors = expected_draft_tensors(config);
  tensors.push_back({"mask_embedding", {{{DType::bf16}, {config.hidden_size}}}});
  write_tensor_file(dir.path() / "anything.safetensors", tensors);
  const Checkpoint files = open_draft(dir.path(), {});
  CHECK_EQ(std::memcmp(load(dir, config).mask_embedding(), files.at("mask_embedding").data.data(), 144), 0);

  const auto write_mask = [&](const writer::Tensor& tensor) {
    dir.write("mask_embedding.safetensors", writer::make_file({tensor}));
  };
  write_mask(mask_tensor("embedding", 72));
  CHECK_EQ(load(dir, config).mask_embedding()[3], 0x3f03);  // a file of its own comes first
  write_mask(mask_tensor("embedding", 73));
  CHECK_THROWS(shape_mismatch, "expected [72] as the config's hidden_size, got [73]", load(dir, config));
  write_mask(mask_tensor("weight", 72));
  CHECK_THROWS(bad_format, "mask_embedding.safetensors: expected one tensor, 'embedding'", load(dir, config));
  write_mask({"embedding", "BF16", {1, 72}, std::string(144, '\x3f')});
  CHECK_THROWS(shape_mismatch, "got 2 dimensions", load(dir, config));
  write_mask({"embedding", "U8", {72}, std::string(72, '\x3f')});
  CHECK_THROWS(shape_mismatch, "expected BF16, F32 or F16, got u8", load(dir, config));
  write_mask({"embedding", "F32", {72}, std::string(288, '\x3f')});
  CHECK_THROWS(unsupported_shape, "element 0: expected a value that BF16 holds", load(dir, config));
  write_mask({"embedding", "F32", {72}, [] {
                std::string bytes;
                for (int i = 0; i < 72; ++i) bytes += std::string("\0\0\x80\x3f", 4);
                return bytes;
              }()});
  CHECK_EQ(load(dir, config).mask_embedding()[71], 0x3f80);
  write_mask({"embedding", "BF16", {72}, std::string(144, '\x7f') + ""});
  load(dir, config);  // 0x7f7f is finite
  write_mask({"embedding", "BF16", {72}, std::string(144, '\xff')});
  CHECK_THROWS(bad_format, "expected a finite bf16", load(dir, config));
}

TEST_CASE("a Qwen3 draft without a mask embedding takes the target's row of the mask token") {
  DraftConfig config = small_draft();
  const writer::TempDir dir, target_dir;
  write_draft(dir, config, {"", false});
  std::string bytes, wide;  // wide: between two values of BF16, next to those of `bytes`
  for (uint32_t i = 0; i < 9 * 72; ++i) bytes += {static_cast<char>(i % 251), '\x3f'};
  for (size_t i = 0; i < bytes.size(); i += 2) wide += {'\x01', '\x01', bytes[i], bytes[i + 1]};
  target_dir.write("model.safetensors",
                   writer::make_file({{"table", "BF16", {9, 72}, bytes}, {"wide", "F32", {9, 72}, wide}}));
  const Checkpoint target = Checkpoint::open(target_dir.path());
  const TensorInfo& table = target.at("table");
  const auto load_with = [&](const TensorInfo* embedding) {
    return DraftWeights::load(dir.path(), config, {}, {}, embedding);
  };
  const auto is_row = [&](uint32_t row) {
    return !std::memcmp(load_with(&table).mask_embedding(), bytes.data() + row * 144, 144);
  };
  config.uses_target_mask = true;
  CHECK(!is_row(7));  // its own comes first
  std::filesystem::remove(dir.path() / "mask_embedding.safetensors");
  CHECK(is_row(7) && !is_row(6));
  config.mask_token_id = 8;
  CHECK(is_row(8));
  CHECK(!std::memcmp(load_with(&target.at("wide")).mask_embedding(), bytes.data() + 8 * 144, 144));  // rounded
  CHECK_THROWS(missing_tensor, "expected mask_embedding.safetensors", load_with(nullptr));
  config.uses_target_mask = false;
  CHECK_THROWS(missing_tensor, "MiMo's fields the row of the embedding table is no substitute", load_with(&table));
}

TEST_CASE("loading can be watched and cancelled, and refuses more than the machine has") {
  const DraftConfig config = small_draft();
  const writer::TempDir dir;
  write_draft(dir, config);
  Weights::Options options;
  uint64_t done = 0, total = 0;
  options.progress = [&](uint64_t done_bytes, uint64_t total_bytes) {
    done = done_bytes, total = total_bytes;
    return true;
  };
  const DraftWeights weights = DraftWeights::load(dir.path(), config, options);
  CHECK_EQ(done, total);
  CHECK(total > 0 && total <= weights.packed_bytes());
  options.progress = [](uint64_t, uint64_t) { return false; };
  CHECK_THROWS(cancelled, "DraftWeights.load", DraftWeights::load(dir.path(), config, options));
  DraftConfig huge = config;  // 5 TB
  huge.hidden_size = 1 << 20;
  huge.intermediate_size = 1 << 18;
  huge.target_layer_ids = {0};
  CHECK_THROWS(out_of_memory, "DraftWeights.synthetic", DraftWeights::synthetic(huge, 1));
}

TEST_CASE("synthetic drafts repeat, fit the config and keep activations at order one") {
  const DraftConfig config = small_draft();
  const DraftWeights weights = DraftWeights::synthetic(config, 5);
  CHECK(packed_bytes(weights) == packed_bytes(DraftWeights::synthetic(config, 5)));
  CHECK(packed_bytes(weights) != packed_bytes(DraftWeights::synthetic(config, 6)));
  const auto gain = [](const PackedMatrix& matrix, uint32_t rows, uint32_t k) {
    double sum = 0;
    for (uint32_t row = 0; row < rows; ++row) {
      const UnpackedRow unpacked = unpack_row(matrix, row);
      for (uint32_t i = 0; i < matrix.k; ++i) {
        const double value = element({"", DType::bf16, {}, unpacked.codes, ""}, i);
        if (i >= k) CHECK_EQ(value, 0.0);
        sum += value * value;
      }
    }
    return std::sqrt(sum / rows);
  };
  const DraftLayerWeights& layer = weights.layer(1);
  // Codes are uniform in 16 classes: the mean of rows * k squares is within 20 %; powers of two round by 1.42.
  const auto near = [](double got, double wanted) { return got > wanted / 1.7 && got < wanted * 1.7; };
  CHECK(near(gain(weights.fc(), 72, 216), 1));
  CHECK(near(gain(layer.qkv, 224, 72), 1));
  CHECK(near(gain(layer.o_proj, 72, 64), 0.5));
  CHECK(near(gain(layer.down, 72, 100), 0.5));
  CHECK(!near(gain(layer.down, 72, 100), 0.05));
  for (uint32_t row = 72; row < 80; ++row)  // padding
    CHECK(unpack_row(weights.fc(), row).codes == std::vector<std::byte>(weights.fc().k * 2));
  for (uint32_t i = 0; i < 32; ++i)
    CHECK(std::abs(layer.q_norm[i] - 1) <= 0.11 && std::abs(layer.k_norm[i] - 1) <= 0.11);
  double mask = 0;
  for (uint32_t i = 0; i < 72; ++i) mask += std::pow(bf16_to_f32(weights.mask_embedding()[i]), 2) / 72;
  CHECK(near(std::sqrt(mask), 1));
}

CHECK_MAIN()
