// The vector that stands for a masked token of a draft: found in `mask_embedding.safetensors` (tensor
// `embedding`), in the draft's own files (tensor `mask_embedding`) or in `mask_embedding.pt`, in this
// order; for a draft of Qwen3's dialect also in the target's embedding.
#pragma once

#include <mimo_rt/checkpoint.h>
#include <mimo_rt/draft.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace mimo_rt {

struct MaskEmbedding {
  TensorInfo tensor;               ///< F32, BF16 or F16, [hidden_size]; views `bytes`
  std::vector<std::byte> bytes;
  std::optional<int64_t> mask_token_id;  ///< what a .pt file says
  bool is_of_target = false;             ///< a row of the target's embedding
};

/// The name that a draft's own files may hold it under, without the prefix of the other tensors.
inline constexpr const char* kMaskEmbeddingName = "mask_embedding";
/// A file of the draft's directory that holds nothing else.
inline constexpr const char* kMaskEmbeddingFile = "mask_embedding.safetensors";

/// Reads it and checks shape, type and the id of the mask token. `target_embedding`: the table
/// [vocab_size, hidden_size] of the target that `config` was checked against.
/// @throws Error{missing_tensor, shape_mismatch, bad_format, io}
MaskEmbedding read_mask_embedding(const Checkpoint& draft, const DraftConfig& config,
                                  const TensorInfo* target_embedding = nullptr);

/// Parses a file as torch.save writes it for {"mask_token_id": int, "embedding": tensor}, perhaps with
/// "per_position": False. Executes nothing: every pickle opcode and global beyond that shape is refused.
/// @throws Error{bad_format}; messages begin with `source`
MaskEmbedding parse_torch_mask_embedding(std::span<const std::byte> file, std::string_view source);

}  // namespace mimo_rt
