// A rank's share of a whole model in the layouts of the CUDA kernels, read back and compared with
// the bytes of the checkpoint by the formulas of the file format.
#include "check.h"
#include "checkpoint_fixture.h"

#include "weights/cuda_weights.h"

#include <set>

using namespace mimo_rt;
using namespace fixture;

namespace {

/// Sizes that two and four ranks can share: 8 q heads and 4 kv heads; FP8 columns in whole blocks.
ModelConfig shareable_config() {
  ModelConfig config = small_config();
  config.vocab_size = 104;
  config.intermediate_size = 512;
  config.expert_intermediate_size = 128;
  return config;
}

/// Scales above 2^25 do not fit the layout.
void fit_scales(const std::string& name, std::string& bytes) {
  if (!name.ends_with("_scale")) return;
  for (char& c : bytes) c = static_cast<char>(static_cast<uint8_t>(c) % 150);
}

std::string text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

struct Model {
  ModelConfig config;
  writer::TempDir dir;
  std::unique_ptr<Checkpoint> checkpoint;

  explicit Model(const ModelConfig& model_config, const Edit& edit = fit_scales)
      : config(model_config) {
    write_checkpoint(dir, config, {}, edit);
    checkpoint = std::make_unique<Checkpoint>(Checkpoint::open(dir.path()));
  }
  CudaWeights load(Rank rank, uint32_t num_threads = 2, ProgressCallback progress = {}) const {
    return CudaWeights::load(*checkpoint, config, {rank, {num_threads, std::move(progress)}});
  }
  MatrixSource source(MatrixKind kind, uint32_t layer = 0, uint32_t expert = 0) const {
    return find_matrix(*checkpoint, config, kind, layer, expert);
  }
};

/// Codes and scales of columns [first, first + count) of a stored row, 32 or 128 columns a scale.
struct StoredRow {
  std::string codes, scales;
  StoredRow(const MatrixSource& source, uint32_t row, uint32_t first, uint32_t count) {
    const uint64_t code_bits = source.row_bytes() * 8 / source.k;
    codes = text(source.row_data(row)).substr(first * code_bits / 8, count * code_bits / 8);
    if (source.format == WeightFormat::plain) return;
    const uint32_t block = source.scale_block_cols, width = block == 32 ? 1 : 4;
    scales = text(source.row_scales(row))
                 .substr(first / block * width, (count + block - 1) / block * width);
  }
};

bool begins_with(const UnpackedRow& row, const StoredRow& stored) {
  return text(row.codes).substr(0, stored.codes.size()) == stored.codes &&
         text(row.scales).substr(0, stored.scales.size()) == stored.scales;
}

/// Rows of a dense matrix that differ from `expected(row)`, which gives a stored row or nothing for
/// padding.
template <typename Expected>
uint32_t count_wrong(const CudaWeights& weights, const CudaDenseMatrix& matrix,
                     const Expected& expected) {
  uint32_t num_wrong = 0;
  for (uint32_t row = 0; row < matrix.shape.rows; ++row) {
    const UnpackedRow unpacked =
        unpack_cuda_dense_row(matrix.shape, weights.block().data() + matrix.offset, row);
    const std::unique_ptr<StoredRow> stored = expected(row);
    num_wrong += stored ? !begins_with(unpacked, *stored)
                        : text(unpacked.codes).find_first_not_of('\0') != std::string::npos;
  }
  return num_wrong;
}

/// A matrix of which the rank has `count` rows from `first` on, in order.
uint32_t count_wrong_rows(const CudaWeights& weights, const CudaDenseMatrix& matrix,
                          const MatrixSource& source, uint32_t first, uint32_t count) {
  return count_wrong(weights, matrix, [&](uint32_t row) -> std::unique_ptr<StoredRow> {
    if (row >= count) return nullptr;
    return std::make_unique<StoredRow>(source, first + row, 0, source.k);
  });
}

/// A matrix of which the rank has columns.
uint32_t count_wrong_columns(const CudaWeights& weights, const CudaDenseMatrix& matrix,
                             const MatrixSource& source, uint32_t first, uint32_t count) {
  CHECK_EQ(matrix.shape.k, count);
  return count_wrong(weights, matrix, [&](uint32_t row) -> std::unique_ptr<StoredRow> {
    if (row >= source.rows) return nullptr;
    return std::make_unique<StoredRow>(source, row, first, count);
  });
}

uint32_t count_wrong_qkv(const CudaWeights& weights, const Model& model, uint32_t layer_idx) {
  const CudaLayerWeights& layer = weights.layer(layer_idx);
  const Rank& rank = weights.rank();
  const LayerConfig& whole = model.config.layers[layer_idx];
  CHECK_EQ(layer.config.num_q_heads * rank.count, whole.num_q_heads);
  CHECK_EQ(layer.qkv.shape.rows, layer.qkv_tiles.size() * 16);
  return count_wrong(weights, layer.qkv, [&](uint32_t row) -> std::unique_ptr<StoredRow> {
    const QkvTile& tile = layer.qkv_tiles[row / 16];
    const int32_t element = qkv_tile_element(tile, layer.config, row % 16);
    if (element < 0) return nullptr;
    const bool is_q = tile.part == QkvTile::Part::q, is_v = tile.part == QkvTile::Part::v;
    const MatrixSource source = model.source(is_q   ? MatrixKind::q_proj
                                             : is_v ? MatrixKind::v_proj
                                                    : MatrixKind::k_proj,
                                             layer_idx);
    const uint32_t heads = (is_q ? whole.num_q_heads : whole.num_kv_heads) / rank.count;
    const uint32_t head = rank.index * heads + tile.head_idx;
    const uint32_t dim = is_v ? whole.v_head_dim : whole.qk_head_dim;
    return std::make_unique<StoredRow>(source, head * dim + static_cast<uint32_t>(element), 0,
                                       source.k);
  });
}

uint32_t count_wrong_experts(const CudaWeights& weights, const Model& model, uint32_t layer_idx) {
  const CudaLayerWeights& layer = weights.layer(layer_idx);
  const uint32_t width = model.config.expert_intermediate_size / weights.rank().count;
  const uint32_t first = weights.rank().index * width;
  uint32_t num_wrong = 0;
  for (uint32_t expert = 0; expert < model.config.num_experts; ++expert) {
    const uint8_t* gate_up = weights.block().data() + layer.expert_gate_up.offset +
                             expert * layer.expert_gate_up.shape.bytes();
    for (uint32_t row = 0; row < 2 * width; ++row) {
      const MatrixSource source = model.source(
          row % 16 < 8 ? MatrixKind::expert_gate_proj : MatrixKind::expert_up_proj, layer_idx, expert);
      num_wrong += !begins_with(unpack_cuda_row(layer.expert_gate_up.shape, gate_up, row),
                                StoredRow(source, first + row / 16 * 8 + row % 8, 0, source.k));
    }
    const MatrixSource source = model.source(MatrixKind::expert_down_proj, layer_idx, expert);
    const uint8_t* down = weights.block().data() + layer.expert_down.offset +
                          expert * layer.expert_down.shape.bytes();
    for (uint32_t row = 0; row < source.rows; ++row)
      num_wrong += !begins_with(unpack_cuda_row(layer.expert_down.shape, down, row),
                                StoredRow(source, row, first, width));
  }
  return num_wrong;
}

bool is_vector(const CudaWeights& weights, uint64_t offset, const TensorInfo& tensor,
               uint32_t first, uint32_t count) {
  std::vector<float> values(first + count);
  read_vector(tensor, values);
  return !std::memcmp(weights.block().data() + offset, values.data() + first, count * 4);
}

bool is_table(const CudaWeights& weights, const CudaTable& table, const MatrixSource& source) {
  const std::string rows(reinterpret_cast<const char*>(weights.block().data() + table.offset),
                         table.rows * source.row_bytes());
  std::string stored;
  for (uint32_t row = 0; row < source.rows; ++row) stored += text(source.row_data(row));
  return table.dtype == source.weight->dtype && table.k == source.k && rows == stored;
}

uint32_t count_wrong_dense_mlp(const CudaWeights& weights, const Model& model) {
  const uint32_t width = model.config.intermediate_size / weights.rank().count;
  const uint32_t first = weights.rank().index * width;
  const MatrixSource gate = model.source(MatrixKind::gate_proj), up = model.source(MatrixKind::up_proj);
  return count_wrong(weights, weights.layer(0).gate_up,
                     [&](uint32_t row) {
                       return std::make_unique<StoredRow>(row % 16 < 8 ? gate : up,
                                                          first + row / 16 * 8 + row % 8, 0, gate.k);
                     }) +
         count_wrong_columns(weights, weights.layer(0).down, model.source(MatrixKind::down_proj),
                             first, width);
}

/// Everything that the rank holds.
uint32_t count_wrong(const CudaWeights& weights, const Model& model) {
  const Rank& rank = weights.rank();
  const uint32_t vocab = model.config.vocab_size / rank.count;
  uint32_t num_wrong = count_wrong_rows(weights, weights.lm_head(), model.source(MatrixKind::lm_head),
                                        rank.index * vocab, vocab) +
                       count_wrong_dense_mlp(weights, model) + count_wrong_experts(weights, model, 1);
  num_wrong += !is_table(weights, weights.embed(), model.source(MatrixKind::embed));
  num_wrong += !is_table(weights, weights.layer(1).router, model.source(MatrixKind::router, 1));
  const uint32_t hidden = model.config.hidden_size;
  const auto vector = [&](VectorKind kind, uint32_t layer, uint64_t offset, uint32_t first,
                          uint32_t count) {
    num_wrong += !is_vector(weights, offset, find_vector(*model.checkpoint, kind, layer), first, count);
  };
  vector(VectorKind::final_norm, 0, weights.final_norm(), 0, hidden);
  for (const uint32_t i : {0u, 1u}) {
    const CudaLayerWeights& layer = weights.layer(i);
    const uint32_t attended = layer.config.num_q_heads * layer.config.v_head_dim;
    num_wrong += count_wrong_qkv(weights, model, i) +
                 count_wrong_columns(weights, layer.o_proj, model.source(MatrixKind::o_proj, i),
                                     rank.index * attended, attended);
    vector(VectorKind::attn_norm, i, layer.attn_norm, 0, hidden);
    vector(VectorKind::mlp_norm, i, layer.mlp_norm, 0, hidden);
  }
  const CudaLayerWeights& moe = weights.layer(1);
  vector(VectorKind::router_bias, 1, moe.router_bias, 0, model.config.num_experts);
  vector(VectorKind::sink_logits, 1, moe.sink_logits, rank.index * moe.config.num_q_heads,
         moe.config.num_q_heads);
  return num_wrong;
}

}  // namespace

TEST_CASE("every rank of one, two and four holds exactly its share") {
  const Model model(shareable_config());
  for (const uint32_t count : {1u, 2u, 4u}) {
    uint64_t num_bytes = 0;
    for (uint32_t index = 0; index < count; ++index) {
      const CudaWeights weights = model.load({index, count});
      CHECK_EQ(count_wrong(weights, model), 0u);
      num_bytes = weights.block().size();
    }
    if (count > 1) CHECK(num_bytes < model.load({0, count / 2}).block().size());
  }
}

TEST_CASE("the comparison sees another rank's share and one changed byte") {
  const Model model(shareable_config());
  const CudaWeights first = model.load({0, 2}), second = model.load({1, 2});
  CHECK_EQ(first.block().size(), second.block().size());
  CHECK(std::memcmp(first.block().data(), second.block().data(), first.block().size()) != 0);
  std::set<uint64_t> offsets;
  const CudaLayerWeights& moe = first.layer(1);
  for (const uint64_t offset : {moe.qkv.offset, moe.o_proj.offset, moe.expert_gate_up.offset,
                                moe.expert_down.offset, first.lm_head().offset}) {
    CHECK_EQ(offset % 256, 0u);
    CHECK(offsets.insert(offset).second);
    auto* byte = const_cast<uint8_t*>(first.block().data() + offset + 3);
    *byte ^= 0x11;
    CHECK(count_wrong(first, model) > 0);
    *byte ^= 0x11;
  }
  CHECK_EQ(count_wrong(first, model), 0u);
}

TEST_CASE("a rank's block is the same for any number of threads; progress counts it") {
  const Model model(shareable_config());
  uint64_t last = 0, total = 0;
  const CudaWeights one = model.load({1, 2}, 1, [&](uint64_t done, uint64_t all) {
    CHECK(done >= last && done <= all);
    last = done;
    total = all;
    return true;
  });
  CHECK(last == total && total > 0 && total <= one.block().size());
  const CudaWeights four = model.load({1, 2}, 4);
  CHECK(!std::memcmp(one.block().data(), four.block().data(), one.block().size()));
  CHECK_THROWS(cancelled, "CudaWeights.load",
               model.load({0, 1}, 2, [](uint64_t, uint64_t) { return false; }));
}

TEST_CASE("a block that is only laid out has the size and the places of one that is packed") {
  const Model model(shareable_config());
  const CudaWeights packed = model.load({0, 2});
  const CudaWeights planned = CudaWeights::load(
      *model.checkpoint, model.config, {.rank = {0, 2}, .pack = {.progress = nullptr, .only_lays_out = true}});
  CHECK_EQ(planned.image().num_bytes, packed.image().num_bytes);
  CHECK_EQ(planned.lm_head().offset, packed.lm_head().offset);
  CHECK(planned.block().empty() && !packed.block().empty());
}

TEST_CASE("ranks that a model cannot be cut for, and what the kernels cannot take") {
  const Model model(shareable_config());
  CHECK_THROWS(invalid_argument, "rank: expected one below 2, got 2", model.load({2, 2}));
  CHECK_THROWS(invalid_argument, "rank", model.load({0, 0}));
  CHECK_THROWS(unsupported_shape, "num_q_heads: expected 3 equal parts", model.load({0, 3}));
  CHECK_THROWS(unsupported_shape, "num_kv_heads: expected 8 equal parts", model.load({0, 8}));

  ModelConfig narrow = shareable_config();
  narrow.intermediate_size = 320;  // two ranks: 160 columns, inside a scale block
  CHECK_THROWS(unsupported_shape, "begin at a multiple of 128, got 160", Model(narrow).load({1, 2}));
  narrow = shareable_config();
  narrow.expert_intermediate_size = 96;
  CHECK_THROWS(unsupported_shape, "moe_intermediate_size: expected 2 equal parts of a multiple of 32",
               Model(narrow).load({0, 2}));

  const Model loud(shareable_config(), [](const std::string& name, std::string& bytes) {
    fit_scales(name, bytes);
    if (name == "model.layers.1.mlp.experts.3.down_proj.weight_scale") bytes[0] = '\xa0';
  });
  CHECK_THROWS(unsupported_shape, "experts.3.down_proj", loud.load({0, 2}));
  CHECK_EQ(count_wrong(loud.load({1, 2}), loud), 0u);  // the scale is the other rank's
  ModelConfig unquantised = shareable_config();
  unquantised.expert_format = WeightFormat::plain;
  CHECK_THROWS(unsupported_shape, "expected MXFP4", Model(unquantised).load({0, 1}));
}

CHECK_MAIN()
