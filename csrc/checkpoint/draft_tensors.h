// Which tensors a draft's config implies, and where each matrix lies: the names of the published
// `dflash/` folder, all with or all without the prefix `model.`.
#pragma once

#include "checkpoint/tensor_table.h"

#include <mimo_rt/checkpoint.h>
#include <mimo_rt/draft.h>

#include <cstdint>
#include <vector>

namespace mimo_rt {

/// Every tensor that `config` implies; with a checkpoint, in its spelling and with its mask embedding
/// if it holds one.
std::vector<ExpectedTensor> expected_draft_tensors(const DraftConfig& config,
                                                   const Checkpoint* checkpoint = nullptr);

/// Opens the files of a draft: through the index, or the one safetensors file of the directory that
/// is not the mask embedding's, whatever its name. @throws as Checkpoint::open
Checkpoint open_draft(const std::filesystem::path& draft_dir, Checkpoint::Options options);

/// Where a matrix lies: `context_fc`, the projections of attention, and the MLP's.
MatrixSource find_draft_matrix(const Checkpoint& checkpoint, const DraftConfig& config,
                               MatrixKind kind, uint32_t layer_idx = 0);

/// `final_norm`, `hidden_norm`, and per layer the norms and `sink_logits`.
const TensorInfo& find_draft_vector(const Checkpoint& checkpoint, VectorKind kind,
                                    uint32_t layer_idx = 0);

/// The tokens that a draft with `draft_vocab_size` can propose, ascending: token i is i + d2t[i].
/// @throws Error{bad_format} naming the element, unless the tokens ascend and are below vocab_size
std::vector<int32_t> read_draft_vocabulary(const Checkpoint& checkpoint, const DraftConfig& config);

/// The tensor `mask_embedding` of the draft's own files, or nullptr.
const TensorInfo* find_own_mask_embedding(const Checkpoint& checkpoint);

}  // namespace mimo_rt
