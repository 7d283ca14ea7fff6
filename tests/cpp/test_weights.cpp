// Loading and synthesis of whole models. The reference of a loaded model is computed here from the
// tensors by the formulas of the file format, row by row; comparisons are of bytes.
#include "check.h"
#include "checkpoint_fixture.h"

#include "core/numeric.h"
#include "weights/pack.h"
#include "weights/weights.h"

#include <cmath>

using namespace mimo_rt;
using namespace fixture;

namespace {

/// All packed bytes: the embedding lies at the beginning of the arena.
std::string_view arena_bytes(const Weights& weights) {
  return {reinterpret_cast<const char*>(weights.embed().data), weights.packed_bytes()};
}

std::string text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Weights load(const writer::TempDir& dir, const ModelConfig& config, uint32_t num_threads = 2,
             ProgressCallback progress = {}) {
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  return Weights::load(checkpoint, config, {num_threads, std::move(progress)});
}

/// Reads rows of stored tensors by name.
class Stored {
 public:
  explicit Stored(const writer::TempDir& dir) : checkpoint_(Checkpoint::open(dir.path())) {}

  /// Row `row` of a tensor with two dimensions.
  std::string row(const std::string& name, uint64_t row_idx) const {
    const TensorInfo& tensor = checkpoint_.at(name);
    const uint64_t row_bytes = tensor.data.size() / tensor.shape[0];
    return text(tensor.data.subspan(row_idx * row_bytes, row_bytes));
  }
  const TensorInfo& at(const std::string& name) const { return checkpoint_.at(name); }

 private:
  Checkpoint checkpoint_;
};

/// Whether a packed row holds these codes (and scales), followed by padding.
bool holds(const PackedMatrix& matrix, uint32_t row, const std::string& codes,
           const std::string& scales = "") {
  const UnpackedRow unpacked = unpack_row(matrix, row);
  std::string padded = codes;
  padded.resize(unpacked.codes.size());
  return text(unpacked.codes) == padded && (scales.empty() || text(unpacked.scales) == scales);
}

bool is_zero(const PackedMatrix& matrix, uint32_t row) { return holds(matrix, row, ""); }

/// Codes and scales that the file has for an element of a head.
using QkvReference = std::function<std::pair<std::string, std::string>(const QkvTile&, uint32_t)>;

void check_qkv(const Weights& weights, uint32_t layer_idx, const QkvReference& expected) {
  const LayerWeights& layer = weights.layer(layer_idx);
  const LayerConfig& shape = weights.config().layers[layer_idx];
  CHECK_EQ(layer.qkv.rows, layer.qkv_tiles.size() * 16);
  uint32_t num_rows = 0;
  for (uint32_t row = 0; row < layer.qkv.rows; ++row) {
    const QkvTile& tile = layer.qkv_tiles[row / 16];
    const int32_t element = qkv_tile_element(tile, shape, row % 16);
    if (element < 0) {
      CHECK(is_zero(layer.qkv, row));
      continue;
    }
    const auto [codes, scales] = expected(tile, static_cast<uint32_t>(element));
    CHECK(holds(layer.qkv, row, codes, scales));
    ++num_rows;
  }
  CHECK_EQ(num_rows, shape.num_q_heads * shape.qk_head_dim +
                         shape.num_kv_heads * (shape.qk_head_dim + shape.v_head_dim));
}

void check_plain(const PackedMatrix& matrix, const Stored& stored, const std::string& name,
                 PackedFormat format = PackedFormat::bf16) {
  CHECK(matrix.format == format);
  const uint64_t rows = stored.at(name).shape[0];
  for (uint32_t row = 0; row < matrix.rows; ++row)
    CHECK(row < rows ? holds(matrix, row, stored.row(name, row)) : is_zero(matrix, row));
}

/// A row of an F32 matrix against stored F16 values, by the definition of the format.
void check_f16_row(const PackedMatrix& matrix, const Stored& stored, const std::string& name,
                   uint32_t row_idx) {
  CHECK(matrix.format == PackedFormat::f32);
  const std::string row = stored.row(name, row_idx);
  const UnpackedRow unpacked = unpack_row(matrix, row_idx);
  for (size_t k = 0; k < row.size() / 2; ++k) {
    uint16_t bits;
    std::memcpy(&bits, &row[k * 2], 2);
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double magnitude = exponent ? std::ldexp(1024 + mantissa, exponent - 25)
                                      : std::ldexp(mantissa, -24);
    float value;
    std::memcpy(&value, &unpacked.codes[k * 4], 4);
    CHECK_EQ(double{value}, bits >> 15 ? -magnitude : magnitude);
  }
}

/// Gate and up in groups of 16, and down; `scale_rows`: stored rows per scale row.
void check_mlp(const PackedMatrix& gate_up, const PackedMatrix& down, const Stored& stored,
               const std::string& prefix, const std::string& scale_name, uint32_t scale_rows) {
  const auto expect = [&](const PackedMatrix& matrix, uint32_t packed, const char* part,
                          uint32_t row) {
    const std::string name = prefix + part;
    if (row >= stored.at(name + ".weight").shape[0]) return is_zero(matrix, packed);
    const std::string scales =
        scale_rows ? stored.row(name + scale_name, row / scale_rows) : std::string();
    return holds(matrix, packed, stored.row(name + ".weight", row), scales);
  };
  for (uint32_t row = 0; row < gate_up.rows; ++row)
    CHECK(expect(gate_up, row, row / 16 % 2 ? "up_proj" : "gate_proj", row / 32 * 16 + row % 16));
  for (uint32_t row = 0; row < down.rows; ++row) CHECK(expect(down, row, "down_proj", row));
  CHECK(!expect(gate_up, 0, "up_proj", 0));  // control
}

void check_vector(const float* values, const TensorInfo& tensor) {
  for (uint64_t i = 0; i < tensor.shape[0]; ++i) {
    float expected;
    uint16_t bits;
    if (tensor.dtype == DType::f32) {
      std::memcpy(&expected, tensor.data.data() + i * 4, 4);
    } else {
      std::memcpy(&bits, tensor.data.data() + i * 2, 2);
      expected = bf16_to_f32(bits);
    }
    CHECK_EQ(values[i], expected);
  }
}

}  // namespace

TEST_CASE("a fused FP8 + MXFP4 checkpoint is packed row by row") {
  const ModelConfig config = small_config();
  const writer::TempDir dir;
  write_checkpoint(dir, config);
  const Stored stored(dir);
  const Weights weights = load(dir, config);
  const std::string attention = "model.layers.1.self_attn.", qkv = attention + "qkv_proj.weight";
  for (uint32_t layer_idx : {0u, 1u})
    check_qkv(weights, layer_idx, [&](const QkvTile& tile, uint32_t element) {
      // Chunk t is [4 q heads | 2 k heads | 2 v heads]; each chunk has 3 scale rows of its own.
      const bool is_q = tile.part == QkvTile::Part::q, is_v = tile.part == QkvTile::Part::v;
      const uint32_t per_chunk = is_q ? 4 : 2, chunk = tile.head_idx / per_chunk;
      const uint32_t begin = is_q ? 0 : is_v ? 6 * 48 : 4 * 48;
      const uint32_t in_chunk = begin + tile.head_idx % per_chunk * (is_v ? 32 : 48) + element;
      const std::string name = "model.layers." + std::to_string(layer_idx) + ".self_attn.qkv_proj";
      return std::pair{stored.row(name + ".weight", chunk * 352 + in_chunk),
                       stored.row(name + ".weight_scale_inv", chunk * 3 + in_chunk / 128)};
    });
  CHECK_EQ(stored.at(qkv).shape[0], 704u);
  check_plain(weights.embed(), stored, "model.embed_tokens.weight");
  check_plain(weights.lm_head(), stored, "lm_head.weight");
  check_plain(weights.layer(1).o_proj, stored, attention + "o_proj.weight");
  const LayerWeights &dense = weights.layer(0), &moe = weights.layer(1);
  check_mlp(dense.gate_up, dense.down, stored, "model.layers.0.mlp.", ".weight_scale_inv", 128);
  for (uint32_t expert = 0; expert < 5; ++expert) {
    CHECK(moe.expert_down[expert].format == PackedFormat::mxfp4);
    check_mlp(moe.expert_gate_up[expert], moe.expert_down[expert], stored,
              "model.layers.1.mlp.experts." + std::to_string(expert) + ".", ".weight_scale", 1);
  }
  CHECK(moe.router.format == PackedFormat::f32 && moe.router.rows == 16);
  check_vector(moe.router_bias, stored.at("model.layers.1.mlp.gate.e_score_correction_bias"));
  check_vector(moe.sink_logits, stored.at(attention + "attention_sink_bias"));
  CHECK(dense.sink_logits == nullptr);
  check_vector(weights.final_norm(), stored.at("model.norm.weight"));
  check_vector(dense.mlp_norm, stored.at("model.layers.0.post_attention_layernorm.weight"));
  check_vector(moe.attn_norm, stored.at("model.layers.1.input_layernorm.weight"));
}

TEST_CASE("split projections, FP8 experts, an F32 router") {
  ModelConfig config = small_config();
  config.qkv_layout = QkvLayout::split;
  config.expert_format = WeightFormat::fp8_block;
  const std::string router = "model.layers.1.mlp.gate.weight";
  const writer::TempDir dir;
  write_checkpoint(dir, config, {{router, DType::f32}});
  const Stored stored(dir);
  const Weights weights = load(dir, config);
  check_qkv(weights, 1, [&](const QkvTile& tile, uint32_t element) {
    const bool is_v = tile.part == QkvTile::Part::v;
    const uint32_t row = tile.head_idx * (is_v ? 32 : 48) + element;
    const char* part = is_v ? "v_proj" : tile.part == QkvTile::Part::q ? "q_proj" : "k_proj";
    const std::string name = std::string("model.layers.1.self_attn.") + part;
    return std::pair{stored.row(name + ".weight", row),
                     stored.row(name + ".weight_scale_inv", row / 128)};
  });
  check_mlp(weights.layer(1).expert_gate_up[4], weights.layer(1).expert_down[4], stored,
            "model.layers.1.mlp.experts.4.", ".weight_scale_inv", 128);
  check_plain(weights.layer(1).router, stored, router, PackedFormat::f32);
}

TEST_CASE("unquantised checkpoints: BF16, tied embeddings, F32 that BF16 holds or not") {
  ModelConfig config = small_config();
  config.expert_format = config.linear_format = WeightFormat::plain;
  config.tie_word_embeddings = true;
  const std::string embed = "model.embed_tokens.weight";
  const std::string o_proj = "model.layers.0.self_attn.o_proj.weight";
  const writer::TempDir dir;
  write_checkpoint(dir, config, {{o_proj, DType::f32}});
  const Stored stored(dir);
  const Weights weights = load(dir, config);
  CHECK(weights.lm_head().data == weights.embed().data);
  check_plain(weights.layer(0).o_proj, stored, o_proj, PackedFormat::f32);
  check_plain(weights.layer(1).o_proj, stored, "model.layers.1.self_attn.o_proj.weight");
  check_mlp(weights.layer(1).expert_gate_up[0], weights.layer(1).expert_down[0], stored,
            "model.layers.1.mlp.experts.0.", "", 0);
  // An F32 embedding of BF16 values gives the same bytes; one other value makes all of it F32.
  const std::string bf16 = text(stored.at(embed).data);
  const auto widened = [&](const std::string& name, std::string& bytes) {
    if (name != embed) return;
    for (size_t i = 0; i < bytes.size() / 4; ++i)
      bytes.replace(i * 4, 4, std::string("\0\0", 2) + bf16.substr(i * 2, 2));
  };
  const writer::TempDir wide, inexact;
  write_checkpoint(wide, config, {{embed, DType::f32}}, widened);
  const Weights from_f32 = load(wide, config);
  CHECK_EQ(arena_bytes(from_f32).substr(0, weights.embed().bytes()),
           arena_bytes(weights).substr(0, weights.embed().bytes()));
  for (const size_t element : {size_t{0}, bf16.size() / 2 - 1}) {
    write_checkpoint(inexact, config, {{embed, DType::f32}},
                     [&](const std::string& name, std::string& bytes) {
                       widened(name, bytes);
                       if (name == embed) bytes[element * 4] = 1;
                     });
    for (const uint32_t num_threads : {1u, 3u}) {
      const Weights tied = load(inexact, config, num_threads);
      CHECK(tied.lm_head().data == tied.embed().data);
      CHECK(tied.lm_head().format == PackedFormat::f32);
      check_plain(tied.embed(), Stored(inexact), embed, PackedFormat::f32);
    }
  }
}

TEST_CASE("embedding and head choose their formats apart, by their values") {
  const ModelConfig config = small_config();
  const std::string embed = "model.embed_tokens.weight", lm_head = "lm_head.weight";
  for (const bool is_head_wide : {false, true}) {
    const writer::TempDir dir;
    const std::string& narrow = is_head_wide ? embed : lm_head;
    write_checkpoint(dir, config, {{embed, DType::f32}, {lm_head, DType::f32}},
                     [&](const std::string& name, std::string& bytes) {
                       for (size_t i = 0; name == narrow && i < bytes.size(); i += 4)
                         bytes[i] = bytes[i + 1] = 0;
                     });
    const Weights weights = load(dir, config);
    const PackedMatrix& wide = is_head_wide ? weights.lm_head() : weights.embed();
    check_plain(wide, Stored(dir), is_head_wide ? lm_head : embed, PackedFormat::f32);
    const PackedMatrix& other = is_head_wide ? weights.embed() : weights.lm_head();
    CHECK(other.format == PackedFormat::bf16);
    CHECK_EQ(wide.bytes(), 2 * other.bytes());
  }
  const writer::TempDir bad;
  write_checkpoint(bad, config, {{embed, DType::f32}}, [&](const std::string& name, std::string& bytes) {
    if (name == embed) bytes.replace(7 * 4, 4, std::string("\x01\0\x80\x7f", 4));
  });
  CHECK_THROWS(bad_format, "element 7: expected a finite f32", load(bad, config));
}

TEST_CASE("a checkpoint of F16: all that BF16 does not hold becomes F32") {
  ModelConfig config = small_config();
  config.expert_format = config.linear_format = WeightFormat::plain;
  std::map<std::string, DType> dtypes;
  for (const ExpectedTensor& tensor : expected_tensors(config)) dtypes[tensor.name] = DType::f16;
  const writer::TempDir dir, inexact;
  // Multiples of 8 of the mantissa: what BF16 holds as well.
  write_checkpoint(dir, config, dtypes, [](const std::string& name, std::string& bytes) {
    if (name == "model.embed_tokens.weight" || name == "lm_head.weight")
      for (size_t i = 0; i < bytes.size(); i += 2) bytes[i] = static_cast<char>(bytes[i] & 0xf8);
  });
  const Weights weights = load(dir, config);
  CHECK(weights.embed().format == PackedFormat::bf16);
  CHECK(weights.layer(0).qkv.format == PackedFormat::f32);
  CHECK(weights.layer(1).expert_gate_up[1].format == PackedFormat::f32);
  const Stored stored(dir);
  check_f16_row(weights.layer(0).o_proj, stored, "model.layers.0.self_attn.o_proj.weight", 7);
  write_checkpoint(inexact, config, dtypes);
  const Weights wide = load(inexact, config);
  const Stored wide_stored(inexact);
  for (const uint32_t row : {0u, 15u, 100u}) {
    check_f16_row(wide.embed(), wide_stored, "model.embed_tokens.weight", row);
    check_f16_row(wide.lm_head(), wide_stored, "lm_head.weight", row);
  }
}

TEST_CASE("the tables of qkv tiles are bounded before they are made") {
  ModelConfig config = small_config();
  for (const LayerConfig& layer : config.layers)
    CHECK_EQ(num_qkv_tiles(layer), qkv_tiles(layer).size());
  LayerConfig odd = config.layers[0];
  for (odd.rotary_dim = 0; odd.rotary_dim <= 48; odd.rotary_dim += 2)
    CHECK_EQ(num_qkv_tiles(odd), qkv_tiles(odd).size());
  LayerConfig& layer = config.layers[0];
  layer.num_q_heads = layer.num_kv_heads = 1u << 22;
  layer.qk_head_dim = layer.v_head_dim = layer.rotary_dim = 2;  // one tile per head and part
  config.layers[1] = layer;  // 2^22 * 3 tiles of 16 rows in each layer
  CHECK_THROWS(unsupported_shape, "qkv rows in all layers, got 402653184",
               Weights::synthetic(config, 1));
}

TEST_CASE("equal bytes for any number of threads, and for any run") {
  const ModelConfig config = small_config();
  const writer::TempDir dir, changed;
  write_checkpoint(dir, config);
  const Weights one = load(dir, config, 1);
  for (const uint32_t num_threads : {1u, 2u, 3u, 0u})
    CHECK(arena_bytes(load(dir, config, num_threads)) == arena_bytes(one));
  const Checkpoint copied = Checkpoint::open(dir.path(), {.use_mmap = false});
  CHECK(arena_bytes(Weights::load(copied, config, {})) == arena_bytes(one));
  write_checkpoint(changed, config, {}, [](const std::string& name, std::string& bytes) {
    if (name == "model.layers.1.mlp.experts.3.up_proj.weight") bytes[77] ^= 1;
  });
  CHECK(arena_bytes(load(changed, config)) != arena_bytes(one));
}

TEST_CASE("bad codes name their tensor, the first one whatever the threads do") {
  const ModelConfig config = small_config();
  const auto expect = [&](const std::string& tensor, size_t byte, const std::string& value,
                          const char* element) {
    const writer::TempDir dir;
    write_checkpoint(dir, config, {}, [&](const std::string& name, std::string& bytes) {
      if (name == tensor) bytes.replace(byte, value.size(), value);
      if (name == "lm_head.weight") bytes.replace(0, 2, "\x80\x7f");  // the last one is bad too
    });
    for (const uint32_t num_threads : {1u, 3u})
      for (const std::string& needle : {tensor, "element " + std::string(element) + ":"})
        CHECK_THROWS(bad_format, needle, load(dir, config, num_threads));
  };
  expect("model.layers.1.mlp.experts.4.down_proj.weight_scale", 7, "\xff", "7");
  expect("model.layers.1.self_attn.qkv_proj.weight", 703 * 160 + 3, "\x7f", "112483");
  expect("model.layers.0.mlp.up_proj.weight_scale_inv", 7, "\xbf", "1");  // negative
  expect("lm_head.weight", 3, "\x01", "0");
  expect("model.norm.weight", 0, "\x80\x7f", "0");
}

TEST_CASE("progress is monotonic and can cancel; its errors reach the caller") {
  const ModelConfig config = small_config();
  const writer::TempDir dir;
  write_checkpoint(dir, config);
  std::vector<std::pair<uint64_t, uint64_t>> calls;
  load(dir, config, 3, [&](uint64_t done, uint64_t total) {
    calls.emplace_back(done, total);
    return true;
  });
  CHECK(calls.size() >= 2 && std::is_sorted(calls.begin(), calls.end()));
  CHECK(calls.front().first == 0 && calls.back().first == calls.back().second);
  CHECK(calls.back().second > 0);
  const auto never = [](uint64_t, uint64_t) { return false; };
  const auto only_at_first = [](uint64_t done, uint64_t) { return done == 0; };
  CHECK_THROWS(cancelled, "progress", load(dir, config, 2, never));
  CHECK_THROWS(cancelled, "progress", load(dir, config, 2, only_at_first));
  CHECK_THROWS(io, "disk", load(dir, config, 2, [](uint64_t done, uint64_t) -> bool {
    return done == 0 ? true : throw Error(ErrorCode::io, "disk");
  }));
}

TEST_CASE("synthetic weights repeat, fit the config and keep activations at order one") {
  ModelConfig config = small_config();
  config.hidden_size = 512;
  config.expert_intermediate_size = 320;
  config.intermediate_size = 328;
  const Weights weights = Weights::synthetic(config, 7);
  CHECK(arena_bytes(weights) == arena_bytes(Weights::synthetic(config, 7)));
  CHECK(arena_bytes(weights) != arena_bytes(Weights::synthetic(config, 8)));
  const writer::TempDir dir;
  write_checkpoint(dir, config);
  const Weights loaded = load(dir, config);
  CHECK_EQ(loaded.packed_bytes(), weights.packed_bytes());
  const LayerWeights &dense = weights.layer(0), &moe = weights.layer(1);
  for (const auto& [matrix, twin, stored_k, gain] :
       {std::tuple{&moe.qkv, &loaded.layer(1).qkv, 512, 1.0},
        {&moe.o_proj, &loaded.layer(1).o_proj, 256, 0.5},
        {&moe.router, &loaded.layer(1).router, 512, 1.0},
        {&moe.expert_gate_up[2], &loaded.layer(1).expert_gate_up[2], 512, 1.0},
        {&moe.expert_down[2], &loaded.layer(1).expert_down[2], 320, 0.5},
        {&dense.gate_up, &loaded.layer(0).gate_up, 512, 1.0},
        {&dense.down, &loaded.layer(0).down, 328, 0.5},
        {&weights.lm_head(), &loaded.lm_head(), 512, 2.0}}) {
    CHECK(matrix->format == twin->format && matrix->rows == twin->rows && matrix->k == twin->k);
    double energy = 0;
    uint32_t num_rows = 0, num_subnormal = 0;
    for (uint32_t row = 0; row < matrix->rows; ++row) {
      CHECK_EQ(is_zero(*matrix, row), is_zero(*twin, row));
      if (is_zero(*matrix, row)) continue;
      ++num_rows;
      const UnpackedRow unpacked = unpack_row(*matrix, row);
      for (uint32_t k = 0; k < matrix->k; ++k) {
        float weight = 0;
        const auto byte = [&](uint32_t i) { return std::to_integer<uint8_t>(unpacked.codes[i]); };
        if (matrix->format == PackedFormat::mxfp4)
          weight = fp4_e2m1_to_f32(byte(k / 2) >> k % 2 * 4 & 15) *
                   e8m0_to_f32(std::to_integer<uint8_t>(unpacked.scales[k / 32]));
        if (matrix->format == PackedFormat::fp8_e4m3) {
          std::memcpy(&weight, &unpacked.scales[k / 128 * 4], 4);
          weight *= fp8_e4m3_to_f32(byte(k));
          num_subnormal += k < static_cast<uint32_t>(stored_k) && (byte(k) & 0x78) == 0;
        }
        if (matrix->format == PackedFormat::bf16)
          weight = bf16_to_f32(static_cast<uint16_t>(byte(k * 2) | byte(k * 2 + 1) << 8));
        if (matrix->format == PackedFormat::f32) std::memcpy(&weight, &unpacked.codes[k * 4], 4);
        CHECK(std::isfinite(weight) && (k < static_cast<uint32_t>(stored_k) || weight == 0));
        energy += double{weight} * weight;
      }
    }
    // Sum of squares of a row = mean square of its output for inputs of mean square one. MXFP4 and
    // BF16 scales are powers of two: within sqrt(2), times sqrt(5/8) for the smaller blocks.
    const double rms = std::sqrt(energy / num_rows);
    CHECK(rms > gain * 0.5 && rms < gain * 1.6);
    CHECK_EQ(num_subnormal, 0u);
  }
  CHECK(std::abs(moe.attn_norm[3] - 1) < 0.2 && moe.attn_norm[3] != moe.attn_norm[4]);
}

CHECK_MAIN()
