// A draft in the layouts of the CUDA kernels, read back and compared with the bytes of its files.
#include "check.h"
#include "draft_fixture.h"

#include "weights/cuda_draft_weights.h"
#include "weights/draft_weights.h"

#include <cstring>

using namespace mimo_rt;
using namespace fixture;

namespace {

DraftConfig device_draft(uint32_t draft_vocab_size) {
  DraftConfig config = small_draft();
  config.hidden_size = 96;
  config.intermediate_size = 160;
  config.draft_vocab_size = draft_vocab_size;
  return config;
}

struct Model {
  ModelConfig target;
  DraftConfig config;
  writer::TempDir target_dir, dir;
  std::unique_ptr<Checkpoint> target_checkpoint, checkpoint;

  explicit Model(uint32_t draft_vocab_size) : target(small_config()) {
    config = device_draft(draft_vocab_size);
    target.hidden_size = config.hidden_size;
    config.vocab_size = target.vocab_size;
    write_checkpoint(target_dir, target, {}, {});
    DraftFiles files;
    files.edit = [](const std::string& name, std::string& bytes) {
      if (name == "d2t") ascend(bytes);
    };
    write_draft(dir, config, files);
    target_checkpoint = std::make_unique<Checkpoint>(Checkpoint::open(target_dir.path()));
    checkpoint = std::make_unique<Checkpoint>(open_draft(dir.path(), {}));
  }
  CudaDraftWeights load(uint32_t num_threads = 2) const {
    return CudaDraftWeights::load(dir.path(), config, {*target_checkpoint, target},
                                  {.num_threads = num_threads, .progress = {}});
  }
  /// Token i is 2 i + 3.
  static void ascend(std::string& bytes) {
    for (uint64_t i = 0; i < bytes.size() / 8; ++i) {
      const uint64_t step = i + 3;
      std::memcpy(bytes.data() + i * 8, &step, 8);
    }
  }
};

/// Whether row `row` of a packed matrix is row `stored` of `source`.
bool is_row(const CudaDraftWeights& weights, const CudaDenseMatrix& matrix, uint32_t row, const MatrixSource& source,
            uint32_t stored) {
  const UnpackedRow unpacked = unpack_cuda_dense_row(matrix.shape, weights.block().data() + matrix.offset, row);
  const std::span<const std::byte> bytes = source.row_data(stored);
  return bytes.size() <= unpacked.codes.size() && !std::memcmp(unpacked.codes.data(), bytes.data(), bytes.size());
}

uint32_t count_wrong_rows(const CudaDraftWeights& weights, const CudaDenseMatrix& matrix, const MatrixSource& source) {
  uint32_t num_wrong = matrix.shape.k != source.k;
  for (uint32_t row = 0; row < source.rows; ++row) num_wrong += !is_row(weights, matrix, row, source, row);
  return num_wrong;
}

uint32_t count_wrong_gate_up(const CudaDraftWeights& weights, const Model& model, uint32_t layer_idx) {
  uint32_t num_wrong = 0;
  for (const MatrixKind kind : {MatrixKind::gate_proj, MatrixKind::up_proj}) {
    const MatrixSource source = find_draft_matrix(*model.checkpoint, model.config, kind, layer_idx);
    for (uint32_t row = 0; row < source.rows; ++row) {
      const uint32_t packed = row / 8 * 16 + row % 8 + (kind == MatrixKind::up_proj ? 8 : 0);
      num_wrong += !is_row(weights, weights.layer(layer_idx).gate_up, packed, source, row);
    }
  }
  return num_wrong;
}

/// Rows of `kinds` of a layer from row `packed` on, which moves on.
uint32_t count_wrong_heads(const CudaDraftWeights& weights, const CudaDenseMatrix& matrix, const Model& model,
                           std::initializer_list<MatrixKind> kinds, uint32_t layer_idx, uint32_t& packed) {
  uint32_t num_wrong = 0;
  for (const MatrixKind kind : kinds) {
    const MatrixSource source = find_draft_matrix(*model.checkpoint, model.config, kind, layer_idx);
    for (uint32_t row = 0; row < source.rows; ++row) num_wrong += !is_row(weights, matrix, packed++, source, row);
  }
  return num_wrong;
}

/// `shift`: a negative control asks for the heads of another layer.
uint32_t count_wrong_qkv(const CudaDraftWeights& weights, const Model& model, uint32_t layer_idx, uint32_t shift = 0) {
  const CudaDenseMatrix& matrix = weights.layer(layer_idx).qkv;
  uint32_t packed = 0;
  const uint32_t num_wrong =
      count_wrong_heads(weights, matrix, model, {MatrixKind::q_proj, MatrixKind::k_proj, MatrixKind::v_proj},
                        (layer_idx + shift) % model.config.num_layers, packed);
  CHECK_EQ(packed, matrix.shape.rows);
  return num_wrong;
}

uint32_t count_wrong_context_kv(const CudaDraftWeights& weights, const Model& model) {
  uint32_t num_wrong = 0, packed = 0;
  for (uint32_t l = 0; l < model.config.num_layers; ++l)
    num_wrong += count_wrong_heads(weights, weights.context_kv(), model, {MatrixKind::k_proj, MatrixKind::v_proj}, l,
                                   packed);
  CHECK_EQ(packed, weights.context_kv().shape.rows);
  return num_wrong;
}

bool are_floats(const CudaDraftWeights& weights, uint64_t offset, const TensorInfo& tensor) {
  std::vector<float> expected(tensor.shape[0]);
  read_vector(tensor, expected);
  return offset % 256 == 0 && !std::memcmp(weights.block().data() + offset, expected.data(), 4 * expected.size());
}

}  // namespace

TEST_CASE("every matrix and vector of a draft is where it says, code by code") {
  const Model model(0);
  const CudaDraftWeights weights = model.load();
  const auto source = [&](MatrixKind kind, uint32_t layer = 0) {
    return find_draft_matrix(*model.checkpoint, model.config, kind, layer);
  };
  const auto vector = [&](VectorKind kind, uint32_t layer = 0) -> const TensorInfo& {
    return find_draft_vector(*model.checkpoint, kind, layer);
  };
  CHECK_EQ(count_wrong_rows(weights, weights.fc(), source(MatrixKind::context_fc)), 0u);
  CHECK(are_floats(weights, weights.hidden_norm(), vector(VectorKind::hidden_norm)));
  CHECK(are_floats(weights, weights.final_norm(), vector(VectorKind::final_norm)));
  CHECK_EQ(count_wrong_context_kv(weights, model), 0u);
  for (uint32_t l = 0; l < model.config.num_layers; ++l) {
    const CudaDraftLayerWeights& layer = weights.layer(l);
    CHECK_EQ(count_wrong_qkv(weights, model, l), 0u);
    CHECK(count_wrong_qkv(weights, model, l, 1) > layer.qkv.shape.rows / 2);
    CHECK_EQ(count_wrong_gate_up(weights, model, l), 0u);
    CHECK_EQ(count_wrong_rows(weights, layer.o_proj, source(MatrixKind::o_proj, l)), 0u);
    CHECK_EQ(count_wrong_rows(weights, layer.down, source(MatrixKind::down_proj, l)), 0u);
    CHECK(are_floats(weights, layer.attn_norm, vector(VectorKind::attn_norm, l)));
    CHECK(are_floats(weights, layer.mlp_norm, vector(VectorKind::mlp_norm, l)));
    CHECK(are_floats(weights, layer.q_norm, vector(VectorKind::q_norm, l)));
    CHECK(are_floats(weights, layer.k_norm, vector(VectorKind::k_norm, l)));
    CHECK(are_floats(weights, layer.sink_logits, vector(VectorKind::sink_logits, l)));
  }
  const std::vector<uint16_t> mask = read_mask_row(*model.checkpoint, model.config);
  CHECK(!std::memcmp(weights.block().data() + weights.mask_embedding(), mask.data(), 2 * mask.size()));

  Model of_target(0);
  std::filesystem::remove(of_target.dir.path() / "mask_embedding.safetensors");
  CHECK_THROWS(missing_tensor, "expected mask_embedding.safetensors", of_target.load());
  of_target.config.uses_target_mask = true;
  const CudaDraftWeights shared = of_target.load();
  const MatrixSource embedding = find_matrix(*of_target.target_checkpoint, of_target.target, MatrixKind::embed);
  const auto row = embedding.row_data(static_cast<uint32_t>(of_target.config.mask_token_id));
  CHECK(!std::memcmp(shared.block().data() + shared.mask_embedding(), row.data(), row.size()));
  CHECK(weights.lm_head() == nullptr);
  const CudaDraftWeights alone = model.load(1);
  CHECK(std::equal(alone.block().begin(), alone.block().end(), weights.block().begin(), weights.block().end()));
}

TEST_CASE("a head for a part of the vocabulary holds the target's rows of its tokens") {
  const Model model(21);
  const CudaDraftWeights weights = model.load();
  const MatrixSource head = find_matrix(*model.target_checkpoint, model.target, MatrixKind::lm_head);
  const CudaDenseMatrix& own = *weights.lm_head();
  CHECK_EQ(own.shape.rows, 32u);
  CHECK_EQ(own.shape.k, model.config.hidden_size);
  const auto* ids = reinterpret_cast<const int32_t*>(weights.block().data() + weights.vocab_ids());
  for (uint32_t row = 0; row < 21; ++row) {
    CHECK_EQ(ids[row], static_cast<int32_t>(2 * row + 3));
    CHECK(is_row(weights, own, row, head, 2 * row + 3));
    CHECK(!is_row(weights, own, row, head, 2 * row + 4));
  }
  for (uint32_t row = 21; row < 32; ++row)
    for (const std::byte code : unpack_cuda_dense_row(own.shape, weights.block().data() + own.offset, row).codes)
      CHECK(code == std::byte{0});
}

TEST_CASE("a draft that the GPU cannot hold is refused before it is packed") {
  const Model model(0);
  uint64_t asked = 0;
  const auto refuse = [&](uint64_t num_bytes) {
    asked = num_bytes;
    throw Error(ErrorCode::out_of_memory, "no room");
  };
  bool has_packed = false;
  const auto progress = [&](uint64_t, uint64_t) { return has_packed = true; };
  CHECK_THROWS(out_of_memory, "no room",
               CudaDraftWeights::load(model.dir.path(), model.config, {*model.target_checkpoint, model.target},
                                      {.num_threads = 1, .progress = progress, .check_room = refuse}));
  CHECK_EQ(asked, model.load().block().size());
  CHECK(!has_packed);
}

CHECK_MAIN()
