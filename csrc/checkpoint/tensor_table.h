// Which tensors a config implies, and where each logical matrix of the model lies inside them. Tensor
// names are spelled only here and, for a draft, in draft_tensors.h. Two namings exist: the vendor's, and the one that
// transformers writes with `save_original_format=False` (all experts of a layer in one 3-d tensor,
// sinks called `self_attn.sinks`).
#pragma once

#include <mimo_rt/checkpoint.h>
#include <mimo_rt/config.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace mimo_rt {

/// One way in which a tensor may be stored.
struct TensorForm {
  std::vector<DType> dtypes;  ///< any of these
  std::vector<uint64_t> shape;
};

struct ExpectedTensor {
  std::string name;
  std::vector<TensorForm> forms;  ///< any of these; the first is the usual one
};

/// Every tensor that `config` implies. With a checkpoint, picks the naming that its tensors use.
/// @throws Error{unsupported_shape} for a config that ModelConfig::from_json would not give
std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config,
                                             const Checkpoint* checkpoint = nullptr);

/// Tensors that are allowed and not read: the multi-token-prediction layers, and what MiMo-V2.5 sees and hears with,
/// which gives vectors in place of embeddings: text does not meet it.
bool is_ignored_tensor(std::string_view name);

/// Checks name, shape and dtype of every tensor; refuses others, but for `is_ignored_tensor`. Lists up
/// to ten differences in one message. `where` names the public operation.
/// @throws Error{missing_tensor, shape_mismatch, bad_format}
void check_tensors(const Checkpoint& checkpoint, std::vector<ExpectedTensor> expected,
                   const char* where);

enum class MatrixKind : uint8_t {
  embed, lm_head,  // lm_head is the embedding when tied
  q_proj, k_proj, v_proj, o_proj,
  gate_proj, up_proj, down_proj,
  router,
  expert_gate_proj, expert_up_proj, expert_down_proj,
  context_fc,  // of a draft: see draft_tensors.h
};

/// A logical matrix [rows, k] inside a stored tensor (its leading dimensions are folded into rows).
///
/// The rows lie in pieces of `piece_rows` rows, `piece_stride` stored rows apart (a fused qkv holds
/// one piece per chunk). FP8 scale blocks restart every `scale_run_rows` stored rows.
struct MatrixSource {
  const TensorInfo* weight = nullptr;
  const TensorInfo* scale = nullptr;  ///< nullptr when plain
  WeightFormat format = WeightFormat::plain;
  uint32_t rows = 0, k = 0;
  uint64_t first_row = 0, piece_rows = 1, piece_stride = 1;
  uint64_t scale_run_rows = 1;
  uint32_t scale_block_rows = 1, scale_block_cols = 1;

  uint64_t stored_row(uint64_t row) const {
    return first_row + row / piece_rows * piece_stride + row % piece_rows;
  }
  /// Row of the stored scale tensor that belongs to logical row `row`.
  uint64_t scale_row(uint64_t row) const {
    const uint64_t stored = stored_row(row);
    const uint64_t blocks_per_run = (scale_run_rows + scale_block_rows - 1) / scale_block_rows;
    return stored / scale_run_rows * blocks_per_run + stored % scale_run_rows / scale_block_rows;
  }
  uint64_t row_bytes() const { return uint64_t{k} * dtype_bits_per_k() / 8; }
  uint64_t scale_cols() const { return (uint64_t{k} + scale_block_cols - 1) / scale_block_cols; }

  /// Stored bytes of row `row`: k elements (MXFP4: k/2 bytes). May be unaligned.
  std::span<const std::byte> row_data(uint64_t row) const {
    return weight->data.subspan(stored_row(row) * row_bytes(), row_bytes());
  }
  /// Stored scales of row `row`: `scale_cols()` F32 (FP8) or E8M0 bytes (MXFP4). May be unaligned.
  std::span<const std::byte> row_scales(uint64_t row) const {
    const uint64_t bytes = scale_cols() * (format == WeightFormat::fp8_block ? 4 : 1);
    return scale->data.subspan(scale_row(row) * bytes, bytes);
  }

 private:
  uint32_t dtype_bits_per_k() const {
    return format == WeightFormat::mxfp4 ? 4 : dtype_bits(weight->dtype);
  }
};

/// Where a matrix lies. The checkpoint must have passed `validate(config)`.
/// @throws Error{missing_tensor}
MatrixSource find_matrix(const Checkpoint& checkpoint, const ModelConfig& config, MatrixKind kind,
                         uint32_t layer_idx = 0, uint32_t expert_idx = 0);

enum class VectorKind : uint8_t {
  final_norm,
  attn_norm, mlp_norm,  // input_layernorm, post_attention_layernorm
  sink_logits,          // [num_q_heads]
  router_bias,          // [num_experts], e_score_correction_bias
  hidden_norm, q_norm, k_norm,  // of a draft: see draft_tensors.h
};

/// A one-dimensional tensor (F32, BF16 or F16). The checkpoint must have passed `validate(config)`.
/// @throws Error{missing_tensor}
const TensorInfo& find_vector(const Checkpoint& checkpoint, VectorKind kind,
                              uint32_t layer_idx = 0);

}  // namespace mimo_rt
