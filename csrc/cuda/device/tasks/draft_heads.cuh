// The second half of a draft's qkv projections: a head's FP32 results become normalised, rotated or
// scaled BF16. A head is whole row groups of one block, so nobody else has to do with it.
#pragma once

#include "cuda/device/tasks/projection.cuh"
#include "cuda/draft_params.h"
#include "plan/task.h"

namespace mimo_rt::cuda {

enum class HeadPart : uint8_t { q, k, v };

/// Which head a tile is (plan/task.h), and its rows in the packed matrix, which follow those of the
/// tile before.
struct HeadPlace {
  uint32_t layer_idx, head_idx;  ///< layer: 0 for the block; head: among those of its part
  HeadPart part;
  uint32_t first_row, num_dims;

  __device__ HeadPlace(const HeadShape& s, uint32_t tile) {
    const uint32_t num_q = s.is_context ? 0 : s.num_q_heads, num_qk = num_q + s.num_kv_heads;
    const uint32_t num_heads = num_qk + s.num_kv_heads;  // of a layer: those of q, of k, of v
    const uint32_t v_begin = num_qk * s.qk_head_dim, head = tile % num_heads;
    layer_idx = tile / num_heads;
    part = head < num_q ? HeadPart::q : head < num_qk ? HeadPart::k : HeadPart::v;
    head_idx = part == HeadPart::q ? head : part == HeadPart::k ? head - num_q : head - num_qk;
    num_dims = part == HeadPart::v ? s.v_head_dim : s.qk_head_dim;
    first_row = layer_idx * (v_begin + s.num_kv_heads * s.v_head_dim) +
                (part == HeadPart::v ? v_begin + head_idx * s.v_head_dim : head * s.qk_head_dim);
  }
};

/// The row groups of a task's tiles, which are neighbours.
__device__ __forceinline__ UnitRange head_units(const HeadShape& shape, const Task& task) {
  const HeadPlace last(shape, task.tile_end - 1);
  return {HeadPlace(shape, task.tile_first).first_row / 16, 1, (last.first_row + last.num_dims) / 16};
}

/// Where row `row` of a head goes; nullptr: nowhere.
__device__ inline uint16_t* head_output(const HeadsParams& p, const HeadPlace& head, uint32_t row) {
  const HeadLayer& layer = p.layers[head.layer_idx];
  if (head.part == HeadPart::q) return p.shape->q.row(row) + head.head_idx * p.shape->qk_head_dim;
  const bool is_k = head.part == HeadPart::k;
  return (is_k ? layer.k_rows : layer.v_rows)[row] +
         uint64_t{head.head_idx} * (is_k ? layer.k_head_stride : layer.v_head_stride);
}

/// One warp. A norm's sum of squares: every 32nd dim ascending in a lane, then the lanes as a tree.
__device__ inline void finish_head_row(const HeadsParams& p, const HeadPlace& head, uint32_t row) {
  const HeadShape& shape = *p.shape;
  const uint32_t lane_idx = threadIdx.x % 32;
  const float* y = p.projection.out_f32.row(row) + head.first_row;
  uint16_t* out = head_output(p, head, row);
  if (head.part == HeadPart::v) {
    for (uint32_t d = lane_idx; d < head.num_dims; d += 32) out[d] = to_bf16(shape.value_scale * y[d]);
    return;
  }
  const HeadLayer& layer = p.layers[head.layer_idx];
  const float* norm = head.part == HeadPart::q ? layer.q_norm : layer.k_norm;
  float factor = 1.0f;
  if (norm) {
    float sum = 0.0f;
    for (uint32_t d = lane_idx; d < head.num_dims; d += 32) sum = fmaf(y[d], y[d], sum);
    factor = inverse_rms_from(warp_sum(sum), head.num_dims, shape.norm_eps);
  }
  const auto value = [&](uint32_t d) { return norm ? y[d] * factor * norm[d] : y[d]; };
  const uint32_t half = shape.rotary_dim / 2;
  const float* cos_sin = shape.cos_sin + uint64_t{row} * shape.rotary_dim;
  for (uint32_t d = lane_idx; d < half; d += 32) {
    const float a = value(d), b = value(d + half);
    const float cosine = cos_sin[2 * d], sine = cos_sin[2 * d + 1];
    out[d] = to_bf16(fmaf(a, cosine, -(b * sine)));
    out[d + half] = to_bf16(fmaf(b, cosine, a * sine));
  }
  for (uint32_t d = shape.rotary_dim + lane_idx; d < head.num_dims; d += 32) out[d] = to_bf16(value(d));
}

/// All compute warps, after the products of a task: a row per warp.
__device__ inline void finish_heads(const HeadsParams& p, const Task& task) {
  compute_barrier();  // the results of all threads, which nobody else touches
  for (uint32_t tile = task.tile_first; tile < task.tile_end; ++tile)
    for (uint32_t row = threadIdx.x / 32; row < p.projection.num_tokens; row += kComputeWarps)
      finish_head_row(p, HeadPlace(*p.shape, tile), row);
}

}  // namespace mimo_rt::cuda
