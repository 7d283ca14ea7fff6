// What the attention kernels are given, and their constants. For g++ and nvcc.
//
//   s_j = scale * (q . k_j)        over the keys j that the row sees
//   out = sum_j e^s_j v_j / (e^sink + sum_j e^s_j)
//
// Rows are consecutive tokens of one sequence, the first at `*position`. Target (causal): the row
// at position p sees [p + 1 - window, p + 1). Draft: row r of the block, p = *position + r, sees the
// context [p + 1 - window, *position) and all rows of the block. window 0: from position 0 on.
//
// The cache is laid out as kv/kv_cache.h says: a *block* (a page of a full layer, or the ring of a
// window layer) holds [num_kv_heads][block_rows] rows of K, then the same of V; position p lies in
// row p % block_rows, in block pages[p / block_rows]. Rows are `k_stride` and `v_stride` elements
// apart. With head dim + 8 the eight rows of a tile begin at eight different bank groups and a tile
// is one bulk copy: 5 % more bytes than dense rows, which would meet in the same banks eight times.
//
// Order of every sum (nothing else changes a bit of the result): see device/tasks/attention.cuh.
#pragma once

#include <cstdint>

#include "cuda/kernel_params.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kTileKeys = 8;    ///< keys of a stage of the ring
inline constexpr uint32_t kChunkKeys = 64;  ///< keys of one softmax; begins at a multiple of it
inline constexpr uint32_t kMaxQkHeadDim = 256;
inline constexpr uint32_t kMaxVHeadDim = 128;
inline constexpr uint32_t kMaxKvStride = kStageBytes / kTileKeys / 2;
/// A unit is up to 2^shift (row, q head) pairs of one kv head; any shift gives the same bits. A block
/// holds one product tile of 16 per compute warp.
inline constexpr uint32_t kMinGroupShift = 4, kMaxGroupShift = 7;
inline constexpr uint32_t kGroupRows = 1u << kMaxGroupShift;
static_assert(kGroupRows == 16 * kComputeWarps);

/// Keys and values of one layer and one sequence.
struct KvView {
  const uint8_t* blocks = nullptr;   ///< block 0; a ring: that of the sequence
  const uint32_t* pages = nullptr;   ///< block of positions [i * block_rows, …); nullptr: a ring
  uint64_t block_bytes = 0;          ///< from block to block
  uint64_t v_begin = 0;              ///< bytes from the start of a block to its values
  uint32_t block_rows = 0;           ///< of a head, multiple of kTileKeys
  uint32_t k_stride = 0, v_stride = 0;  ///< elements from row to row, multiples of 8
};

struct AttentionParams {
  RowsView<const uint16_t> q;  ///< BF16 [num_rows, num_q_heads * qk_head_dim]
  RowsView<uint16_t> out;      ///< BF16 [num_rows, num_q_heads * v_head_dim]
  KvView kv;
  /// Draft only: keys and values of the block's rows 0, 1, …, one block as in the cache;
  /// `block.blocks` nullptr: the rows are causal and their keys are in `kv`.
  KvView block;
  uint32_t num_block_rows = 0;          ///< draft only: of the block
  uint32_t first_row = 0;               ///< draft only: row 0 of the call is this row of the block
  const uint32_t* position = nullptr;   ///< [1] of row 0; draft: of the block's row 0
  const float* sink_logits = nullptr;   ///< [num_q_heads]; nullptr: no sinks
  float* partials = nullptr;            ///< [attention_partial_floats()]
  uint32_t num_rows = 0;                ///< 1 .. kMaxTokens
  uint32_t num_q_heads = 0, num_kv_heads = 0;
  uint32_t qk_head_dim = 0, v_head_dim = 0;  ///< multiples of 16
  float scale = 0.0f;                   ///< 1 / sqrt(qk_head_dim)
  uint32_t window_tokens = 0;           ///< 0: all keys
  /// Keys that one block goes through before partial results meet; a multiple of kChunkKeys. Part
  /// of the result's definition: a constant of the layer.
  uint32_t split_keys = 0;
  uint32_t max_context = 0;             ///< no row is at this position or beyond
};

/// Most splits that the rows of a call can touch.
inline uint32_t max_attention_splits(const AttentionParams& p) {
  const uint32_t splits = (p.max_context + p.split_keys - 1) / p.split_keys;
  const uint32_t seen = p.window_tokens + p.num_rows;  // keys of all rows, when there is a window
  const uint32_t touched = (seen + p.split_keys - 1) / p.split_keys + 1;
  const uint32_t of_cache = p.window_tokens != 0 && touched < splits ? touched : splits;
  return of_cache + (p.block.blocks != nullptr ? 1 : 0);
}

/// Per split and (row, q head): sums of the values, then largest score and sum of the weights.
inline uint64_t attention_partial_floats(const AttentionParams& p) {
  return uint64_t{max_attention_splits(p)} * p.num_rows * p.num_q_heads * (p.v_head_dim + 2);
}

}  // namespace mimo_rt::cuda
