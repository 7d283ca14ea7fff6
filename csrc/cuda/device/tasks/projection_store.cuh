// What becomes of the results of a projection: plain, residual, gated MLP, qkv with RoPE, best scores.
#pragma once

#include "cuda/device/math/silu.cuh"
#include "cuda/device/tasks/sampling.cuh"
#include "cuda/projection_params.h"

namespace mimo_rt::cuda {

/// This thread's outputs of a unit: one row of 16, every 16th token. Lanes 0..15 of a warp hold the
/// rows of one token, lanes 16..31 those of the next.
struct ProjectionOutputs {
  static constexpr uint32_t kTokenStep = kComputeWarps * 32 / 16;
  static constexpr uint32_t kTokens = kMaxTokens / kTokenStep;
  float y[kTokens];
  uint16_t before[kTokens];  ///< what the residual stream holds there

  __device__ static uint32_t row() { return threadIdx.x % 16; }
  __device__ static uint32_t token(uint32_t i) { return threadIdx.x / 16 + i * kTokenStep; }
  /// Ahead of the barriers behind the products, which take as long as the way to memory.
  __device__ void load_residual(const ProjectionParams& p, uint32_t unit) {
    if (p.store != ProjectionStore::add_residual) return;
    const uint32_t column = unit * 16 + row();
#pragma unroll
    for (uint32_t i = 0; i < kTokens; ++i)
      if (token(i) < p.num_tokens && column < p.num_columns) before[i] = p.out_bf16.row(token(i))[column];
  }
};

__device__ __forceinline__ uint16_t to_bf16(float value) {
  return static_cast<uint16_t>(ptx::to_bf16x2(value, 0.0f));
}

/// The best score of each compute thread's outputs over all units of a block. In shared memory, though
/// nobody else reads it: the products need the registers.
struct BestScores {
  using Outputs = ProjectionOutputs;
  BestToken scores[kComputeWarps * 32];
  static_assert(Outputs::kTokenStep == kMaxScoredTokens);
  bool is_sampled[kMaxScoredTokens], is_plain[kMaxScoredTokens];

  __device__ void reset(const ProjectionParams& p) {
    if (p.store != ProjectionStore::scores) return;
    scores[threadIdx.x] = BestToken{};
    const uint32_t token = Outputs::token(0);
    if (Outputs::row() != 0) return;  // a barrier follows
    is_sampled[token] = token < *p.sampled->num_rows;
    is_plain[token] = is_sampled[token] && SampleRow{p.sampled->call(token), p.sampled->row_of_call(token)}.is_plain();
  }
  /// Not inlined, as what samples.
  __device__ __attribute__((noinline)) void take_score(const ProjectionParams& p, uint32_t column, float y) {
    const uint32_t token = Outputs::token(0);
    double score = y;
    const bool may_be_drawn =
        is_plain[token] ? is_finite(y)
                        : SampleRow{p.sampled->call(token), p.sampled->row_of_call(token)}.score_of(y, column, score);
    if (may_be_drawn) scores[threadIdx.x].take(score, column);
  }
  /// Whole warps.
  __device__ __attribute__((noinline)) void store_scores(const ProjectionParams& p, uint32_t block) const {
    const uint32_t token = Outputs::token(0);
    BestToken of_token = scores[threadIdx.x];
    of_token.reduce(16);
    if (token >= p.num_tokens || Outputs::row() != 0 || !is_sampled[token]) return;
    const SampleScratch& scratch = p.sampled->call(token).scratch;
    const uint32_t place = p.sampled->row_of_call(token) * scratch.num_parts + block;
    scratch.best_scores[place] = of_token.score;
    scratch.best_ids[place] = of_token.id;
  }
};

/// One result of a qkv tile, rotated, scaled and rounded once, into the row of its head. `partner`
/// is the result of row +- 8.
__device__ inline void store_qkv(const ProjectionParams& p, const QkvTile& tile, uint32_t token,
                                 float y, float partner) {
  const QkvOutput& out = p.qkv;
  const uint32_t row = ProjectionOutputs::row(), pair = row % 8;
  if ((tile.rotary ? pair : row) >= tile.num_dims) return;
  uint16_t* head = nullptr;
  if (tile.part == QkvTile::Part::q) {
    head = out.q.row(token) + tile.head_idx * out.qk_head_dim;
  } else {
    const bool is_k = tile.part == QkvTile::Part::k;
    head = is_k ? out.k_rows[token] : out.v_rows[token];
    if (!head) return;
    head += uint64_t{tile.head_idx} * (is_k ? out.k_head_stride : out.v_head_stride);
  }
  if (!tile.rotary) {
    const float scale = tile.part == QkvTile::Part::v ? out.value_scale : 1.0f;
    head[tile.dim_begin + row] = to_bf16(scale * y);
    return;
  }
  const uint32_t dim = tile.dim_begin + pair;
  const float* cos_sin = out.cos_sin + uint64_t{token} * out.rotary_dim + 2 * dim;
  const float turned = row < 8 ? -(partner * cos_sin[1]) : partner * cos_sin[1];
  head[dim + (row < 8 ? 0 : out.rotary_dim / 2)] = to_bf16(fmaf(y, cos_sin[0], turned));
}

__device__ inline void store_value(const ProjectionParams& p, uint32_t i, uint32_t column, float y, uint16_t before,
                                   BestScores& best) {
  if (column >= p.num_columns) return;
  const uint32_t token = ProjectionOutputs::token(i);
  switch (p.store) {
    case ProjectionStore::bf16: p.out_bf16.row(token)[column] = to_bf16(y); return;
    case ProjectionStore::add_residual: {
      const uint16_t x = to_bf16(ptx::low_bf16(before) + y);
      p.out_bf16.row(token)[column] = x;
      if (p.capture.rows) p.capture.rows[token][p.capture.first_column + column] = x;
      return;
    }
    case ProjectionStore::scores:
      if (best.is_sampled[token]) best.take_score(p, column, y);
      break;
    default: break;
  }
  p.out_f32.row(token)[column] = y;
}

/// Stores one unit. All compute threads, whole warps.
__device__ inline void store_projection(const ProjectionParams& p, uint32_t unit, const ProjectionOutputs& outputs,
                                        BestScores& best) {
  using Outputs = ProjectionOutputs;
#pragma unroll
  for (uint32_t i = 0; i < Outputs::kTokens; ++i) {
    const uint32_t token = Outputs::token(i);
    const float partner = ptx::shuffle_xor(outputs.y[i], 8);
    if (token >= p.num_tokens) continue;
    if (p.store == ProjectionStore::qkv) {
      store_qkv(p, p.qkv.tiles[unit], token, outputs.y[i], partner);
    } else if (p.store == ProjectionStore::gate_up) {
      const uint32_t row = Outputs::row(), column = unit * 8 + row;
      if (row < 8 && column < p.num_columns)
        p.out_bf16.row(token)[column] = to_bf16(silu(outputs.y[i]) * partner);
    } else {
      store_value(p, i, unit * 16 + Outputs::row(), outputs.y[i], outputs.before[i], best);
    }
  }
}

}  // namespace mimo_rt::cuda
