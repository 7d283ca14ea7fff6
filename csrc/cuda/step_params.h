// What the tasks of a step look up in device memory: its rows, where their keys and values go, and
// the angles of the rotary embedding. For g++ and nvcc.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "cuda/attention_params.h"
#include "cuda/kernel_params.h"
#include "cuda/sampling_params.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kMaxStepTokens = kMaxTokens;  ///< rows of a step, or of a draft's context
inline constexpr uint32_t kMaxBlockTokens = 8;          ///< rows of a round

/// Positions between two entries of `RotaryTable::coarse`.
inline constexpr uint32_t kFinePositions = 1024;

/// cos and sin of position * theta^(-2 pair / rotary_dim) as those of a sum of two angles, in
/// float64: a table of all positions would take hundreds of megabytes.
struct RotaryTable {
  const double* coarse = nullptr;  ///< [*, rotary_dim] cos, sin of pair 0, …: position 1024 i
  const double* fine = nullptr;    ///< [kFinePositions, rotary_dim] the same: position i
  float* cos_sin = nullptr;        ///< [max_tokens, rotary_dim] of the step's rows
  uint32_t rotary_dim = 0;
};

/// Where keys and values of some rows go in some layers of their caches.
struct RowPlaces {
  uint32_t first_layer = 0, num_layers = 0, max_rows = 0;
  uint16_t** k_rows = nullptr;  ///< [num_layers, max_rows] row of head 0
  uint16_t** v_rows = nullptr;  ///< the same for values
};

/// What a draft sees of a sequence: the captured features of its last positions.
struct FeatureRing {
  uint16_t* rows = nullptr;  ///< BF16 [ring_rows, width]
  uint32_t ring_rows = 0, width = 0;

  MIMO_RT_HOST_DEVICE uint32_t row_idx(uint32_t position) const { return position % ring_rows; }
};

/// Where a sequence lies, in a cache of its own or beside others.
struct KvSequence {
  const KvView* layers = nullptr;  ///< the draft's behind the target's
  FeatureRing features;            ///< with a draft
};

struct DraftTables;  // draft_params.h

/// The rows of a step. The host sets the first half before a launch, in rounds the accept task for
/// every round but the first; the embed task of a row, which comes before everything that has to do
/// with that row, sets what follows from its position.
struct StepTables {
  uint32_t num_tokens = 0, num_logit_rows = 0;
  // Of rounds; in steps 0.
  uint32_t is_over = 0;  ///< set when a round ends: no further epoch of this launch has anything to do
  uint32_t num_draft_rows = 0;  ///< block size, or 0: the round does not draft
  // With a draft.
  uint32_t context_begin = 0, num_context_rows = 0;  ///< positions whose draft keys and values are made
  uint32_t num_sampled_rows = 0;  ///< all logit rows, or none
  const int32_t* token_ids = nullptr;    ///< [num_tokens]
  const uint32_t* positions = nullptr;   ///< [num_tokens]
  const uint32_t* logit_rows = nullptr;  ///< [num_logit_rows]
  KvSequence kv[kMaxStepTokens] = {};    ///< of each row; rows of context are of the first row's sequence

  /// [rows, kv heads] of the attention at hand: shares whose partial results are there; else 0.
  uint32_t* arrived = nullptr;
  RowPlaces places;                     ///< of the step's rows
  const RotaryTable* rotary = nullptr;  ///< [num_rotary]
  uint32_t num_rotary = 0;
  const DraftTables* draft = nullptr;   ///< nullptr: the model has none
};

struct EmbedParams {
  const uint8_t* table = nullptr;  ///< [vocab_size, k] as the checkpoint stores it
  RowsView<uint16_t> out;          ///< BF16 [num_tokens, k]
  const StepTables* step = nullptr;
  uint32_t num_tokens = 0;  ///< 1 .. kMaxTokens
  uint32_t k = 0;           ///< multiple of 32
  bool is_f32 = false;      ///< else BF16
};

/// q heads of a kv head: one product tile.
inline constexpr uint32_t kMaxQPerKv = 16;

/// Attention of rows that need not belong to one sequence, or of a draft's block (call.block): each is a
/// call of its own. Tiles: see plan/task.h.
struct AttendRowsParams {
  AttentionParams call;  ///< of row 0; num_rows 1
  const StepTables* step = nullptr;
  uint32_t layer_idx = 0;       ///< of StepTables::kv
  uint32_t partial_floats = 0;  ///< of a row
  uint32_t num_tokens = 0;      ///< 1 .. kMaxTokens; of the block
};

}  // namespace mimo_rt::cuda
