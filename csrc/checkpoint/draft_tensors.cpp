#include "checkpoint/draft_tensors.h"

#include "checkpoint/mask_embedding.h"
#include "core/checks.h"
#include "core/file.h"
#include "core/text.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>

namespace mimo_rt {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWhere = "DraftWeights.load";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kContextFc = "fc.weight";
constexpr const char* kVocabulary = "d2t";
constexpr size_t kMaxShown = 5;

struct Matrix {
  MatrixKind kind;
  const char* name;
  uint64_t rows, k;
};

std::vector<Matrix> layer_matrices(const DraftConfig& config) {
  const uint64_t hidden = config.hidden_size, width = config.intermediate_size;
  const uint64_t q_heads = config.num_q_heads, kv_heads = config.num_kv_heads;
  return {{MatrixKind::q_proj, "self_attn.q_proj.weight", q_heads * config.qk_head_dim, hidden},
          {MatrixKind::k_proj, "self_attn.k_proj.weight", kv_heads * config.qk_head_dim, hidden},
          {MatrixKind::v_proj, "self_attn.v_proj.weight", kv_heads * config.v_head_dim, hidden},
          {MatrixKind::o_proj, "self_attn.o_proj.weight", hidden, q_heads * config.v_head_dim},
          {MatrixKind::gate_proj, "mlp.gate_proj.weight", width, hidden},
          {MatrixKind::up_proj, "mlp.up_proj.weight", width, hidden},
          {MatrixKind::down_proj, "mlp.down_proj.weight", hidden, width}};
}

const char* vector_name(VectorKind kind) {
  switch (kind) {
    case VectorKind::final_norm: return "norm.weight";
    case VectorKind::hidden_norm: return "hidden_norm.weight";
    case VectorKind::attn_norm: return "input_layernorm.weight";
    case VectorKind::mlp_norm: return "post_attention_layernorm.weight";
    case VectorKind::q_norm: return "self_attn.q_norm.weight";
    case VectorKind::k_norm: return "self_attn.k_norm.weight";
    case VectorKind::sink_logits: return "self_attn.attention_sink_bias";
    case VectorKind::router_bias: break;
  }
  fail(ErrorCode::internal, kWhere, "unknown vector kind");
}

std::string prefix_of(const Checkpoint* checkpoint) {
  const std::string prefix = "model.";
  return checkpoint && checkpoint->find(prefix + kContextFc) ? prefix : "";
}

std::string layer_name(const std::string& prefix, uint32_t layer_idx, const char* tail) {
  return concat(prefix, "layers.", layer_idx, '.', tail);
}

MatrixSource plain_source(const TensorInfo& weight, uint64_t rows, uint64_t k) {
  MatrixSource source;
  source.weight = &weight;
  source.rows = static_cast<uint32_t>(rows);
  source.k = static_cast<uint32_t>(k);
  source.piece_rows = source.piece_stride = source.scale_run_rows = rows;
  return source;
}

/// The safetensors files of a directory, sorted, without the mask embedding's.
std::vector<std::string> tensor_files(const fs::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entry(directory, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.ends_with(".safetensors") && name != kMaskEmbeddingFile) names.push_back(name);
  }
  MIMO_RT_CHECK(!error, io, kWhere, printable(directory.string()), ": ", error.message());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

std::vector<ExpectedTensor> expected_draft_tensors(const DraftConfig& config,
                                                   const Checkpoint* checkpoint) {
  const std::string prefix = prefix_of(checkpoint);
  std::vector<ExpectedTensor> tensors;
  const auto add = [&](std::string name, std::vector<uint64_t> shape) {
    tensors.push_back(
        {std::move(name), {{{DType::bf16, DType::f32, DType::f16}, std::move(shape)}}});
  };
  const uint64_t hidden = config.hidden_size;
  add(prefix + kContextFc, {hidden, hidden * config.target_layer_ids.size()});
  for (const VectorKind kind : {VectorKind::hidden_norm, VectorKind::final_norm})
    add(prefix + vector_name(kind), {hidden});
  for (uint32_t i = 0; i < config.num_layers; ++i) {
    const auto add_vector = [&](VectorKind kind, uint64_t size) {
      add(layer_name(prefix, i, vector_name(kind)), {size});
    };
    add_vector(VectorKind::attn_norm, hidden);
    add_vector(VectorKind::mlp_norm, hidden);
    if (config.has_qk_norm) {
      add_vector(VectorKind::q_norm, config.qk_head_dim);
      add_vector(VectorKind::k_norm, config.qk_head_dim);
    }
    if (config.has_sink) add_vector(VectorKind::sink_logits, config.num_q_heads);
    for (const Matrix& matrix : layer_matrices(config))
      add(layer_name(prefix, i, matrix.name), {matrix.rows, matrix.k});
  }
  if (config.draft_vocab_size)
    tensors.push_back({prefix + kVocabulary, {{{DType::i64}, {config.draft_vocab_size}}}});
  if (const TensorInfo* mask = checkpoint ? find_own_mask_embedding(*checkpoint) : nullptr)
    add(mask->name, {hidden});
  return tensors;
}

Checkpoint open_draft(const fs::path& draft_dir, Checkpoint::Options options) {
  const fs::path directory = canonical_directory(draft_dir, kWhere);
  std::error_code error;
  if (fs::symlink_status(directory / kIndexName, error).type() == fs::file_type::not_found) {
    const std::vector<std::string> names = tensor_files(directory);
    std::string shown;
    for (size_t i = 0; i < std::min(names.size(), kMaxShown); ++i)
      shown += (i ? ", " : "") + printable(names[i]);
    MIMO_RT_CHECK(names.size() == 1, io, kWhere, printable(directory.string()), ": expected ",
                  kIndexName, " or one file *.safetensors with the draft, found ",
                  names.empty() ? "none" : concat(names.size(), " files: ", shown));
    options.single_file = names[0];
  }
  return Checkpoint::open(directory, options);
}

MatrixSource find_draft_matrix(const Checkpoint& checkpoint, const DraftConfig& config,
                               MatrixKind kind, uint32_t layer_idx) {
  const std::string prefix = prefix_of(&checkpoint);
  if (kind == MatrixKind::context_fc)
    return plain_source(checkpoint.at(prefix + kContextFc), config.hidden_size,
                        uint64_t{config.hidden_size} * config.target_layer_ids.size());
  for (const Matrix& matrix : layer_matrices(config))
    if (matrix.kind == kind)
      return plain_source(checkpoint.at(layer_name(prefix, layer_idx, matrix.name)), matrix.rows,
                          matrix.k);
  fail(ErrorCode::internal, kWhere, "unknown matrix kind");
}

const TensorInfo& find_draft_vector(const Checkpoint& checkpoint, VectorKind kind,
                                    uint32_t layer_idx) {
  const std::string prefix = prefix_of(&checkpoint);
  const bool is_global = kind == VectorKind::final_norm || kind == VectorKind::hidden_norm;
  return checkpoint.at(is_global ? prefix + vector_name(kind)
                                 : layer_name(prefix, layer_idx, vector_name(kind)));
}

std::vector<int32_t> read_draft_vocabulary(const Checkpoint& checkpoint,
                                           const DraftConfig& config) {
  const TensorInfo& tensor = checkpoint.at(prefix_of(&checkpoint) + kVocabulary);
  std::vector<int32_t> ids(config.draft_vocab_size);
  int64_t least = 0;
  for (uint32_t i = 0; i < config.draft_vocab_size; ++i) {
    int64_t step;
    std::memcpy(&step, tensor.data.data() + uint64_t{i} * sizeof step, sizeof step);
    // In terms of the step: i + step could overflow.
    MIMO_RT_CHECK(step >= least - i && step < int64_t{config.vocab_size} - i, bad_format, kWhere,
                  "tensor ", printable(tensor.name), " of ", printable(tensor.file_name),
                  ", element ", i, ": expected ", least - i, "..",
                  int64_t{config.vocab_size} - i - 1,
                  ", so that the tokens i + d2t[i] ascend below vocab_size (", config.vocab_size,
                  "), got ", step);
    ids[i] = static_cast<int32_t>(i + step);
    least = i + step + 1;
  }
  return ids;
}

const TensorInfo* find_own_mask_embedding(const Checkpoint& checkpoint) {
  const TensorInfo* plain = checkpoint.find(kMaskEmbeddingName);
  return plain ? plain : checkpoint.find(concat("model.", kMaskEmbeddingName));
}

}  // namespace mimo_rt
