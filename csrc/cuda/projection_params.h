// What the projection kernels are given, and their constants. For g++ and nvcc.
//
//   y[token, column] = sum over k of W[column, k] * a[token, k]
//
// with a = x, or a = bf16(x * rsqrt(mean(x²) + eps) * norm_weight) where a norm is fused; then one
// of the stores below. Order of every sum (nothing else changes a bit of the result): see
// device/tasks/projection.cuh.
#pragma once

#include <cstdint>

#include "cuda/kernel_params.h"
#include "cuda/sampling_params.h"
#include "weights/cuda_dense_tiles.h"
#include "weights/qkv_tiles.h"

namespace mimo_rt::cuda {

/// Parts of a segment of K that are summed on their own, one per compute warp, then added in order.
inline constexpr uint32_t kProjectionParts = kComputeWarps;
inline constexpr uint32_t kMaxProjectionSegments = 8;
inline constexpr uint32_t kMaxScoredTokens = 2 * kComputeWarps;  ///< one output of a unit to a compute thread

enum class ProjectionFormat : uint8_t { fp8_e4m3, bf16 };

/// What becomes of y.
enum class ProjectionStore : uint8_t {
  f32,           ///< out_f32 = y
  bf16,          ///< out_bf16 = bf16(y)
  add_residual,  ///< out_bf16 = bf16(out_bf16 + y)
  gate_up,       ///< out_bf16 = bf16(silu(gate) * up): rows 0..7 of a group are gate, 8..15 up
  qkv,           ///< RoPE and value scale; q to its rows, k and v to the cache
  scores,        ///< out_f32 = y, and of the rows that are sampled the best score of this block
};

/// Where the results of a fused qkv go. Row groups are the tiles of `qkv_tiles`.
struct QkvOutput {
  const QkvTile* tiles = nullptr;      ///< [rows / 16]
  RowsView<uint16_t> q;                ///< BF16 [num_tokens, num_q_heads * qk_head_dim]
  uint16_t* const* k_rows = nullptr;   ///< [num_tokens] BF16 row of head 0; null: not stored
  uint16_t* const* v_rows = nullptr;   ///< the same for values
  uint32_t k_head_stride = 0;          ///< elements from a head's row to the next head's
  uint32_t v_head_stride = 0;
  const float* cos_sin = nullptr;      ///< [num_tokens, rotary_dim]: cos, sin of pair 0, …
  uint32_t qk_head_dim = 0, rotary_dim = 0;
  float value_scale = 1.0f;
  uint32_t num_q_heads = 0;  ///< that the tiles have
};

struct ProjectionParams {
  const uint8_t* tiles = nullptr;
  RowsView<const uint16_t> x;         ///< BF16 [*, k]
  const uint32_t* row_ids = nullptr;  ///< [num_tokens] rows of x; nullptr: 0, 1, 2, …
  const float* norm_weight = nullptr; ///< [k]; nullptr: x is used as it is
  float norm_eps = 0.0f;
  uint32_t num_tokens = 0;  ///< 1 .. kMaxTokens
  uint32_t rows = 0;        ///< packed, multiple of 16
  uint32_t k = 0;           ///< multiple of 32
  /// Segments of K that are summed before they are added up, 1 .. 8: 8 / number of ranks for a
  /// matrix whose K is cut over ranks, else 1.
  uint32_t num_segments = 1;
  ProjectionFormat format = ProjectionFormat::bf16;
  ProjectionStore store = ProjectionStore::f32;
  uint32_t num_columns = 0;  ///< of the output, without padding; not for qkv
  RowsView<float> out_f32;
  RowsView<uint16_t> out_bf16;
  CaptureOutput capture;      ///< add_residual only
  QkvOutput qkv;
  const SampledRows* sampled = nullptr;  ///< scores; part i of a row's scratch: block i
};

/// The norm alone, for calls with so many tokens that fusing it costs more than writing the rows.
struct RmsNormParams {
  RowsView<const uint16_t> x;         ///< BF16 [*, k]
  const uint32_t* row_ids = nullptr;  ///< [num_tokens] rows of x; nullptr: 0, 1, 2, …
  const float* weight = nullptr;      ///< [k]
  RowsView<uint16_t> out;             ///< BF16 [num_tokens, k], not x
  float eps = 0.0f;
  uint32_t num_tokens = 0;  ///< any number
  uint32_t k = 0;           ///< multiple of 32
};

}  // namespace mimo_rt::cuda
