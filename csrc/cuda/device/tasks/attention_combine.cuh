// Adds up the splits of attention, ascending, with the sink: after all units of tasks/attention.cuh.
#pragma once

#include "cuda/device/tasks/attention.cuh"

namespace mimo_rt::cuda {

/// One warp: one q head of one row.
__device__ inline void combine_head(const AttentionParams& p, const AttentionCall& call,
                                    uint32_t row, uint32_t head) {
  constexpr uint32_t kLaneDims = kMaxVHeadDim / 32;
  const uint32_t lane_idx = threadIdx.x % 32, dim = lane_idx * kLaneDims;
  const uint32_t q_per_kv = p.num_q_heads / p.num_kv_heads;
  const uint32_t kv_head = head / q_per_kv, pair = row * q_per_kv + head % q_per_kv;
  const float sink = p.sink_logits ? p.sink_logits[head] * kLog2E : kNoScore;
  float max = fmaxf(sink, kNoScore);
  for (uint32_t split = lane_idx; split < call.num_splits; split += 32)
    max = fmaxf(max, *PartialResults(p, call, split, kv_head).statistics(p, pair));
#pragma unroll
  for (uint32_t mask = 16; mask != 0; mask /= 2) max = fmaxf(max, ptx::shuffle_xor(max, mask));
  float weight = p.sink_logits ? ptx::exp2_approx(sink - max) : 0.0f;
  float sums[kLaneDims] = {};
  if (dim >= p.v_head_dim) return;
#pragma unroll 8  // trips to memory at a time
  for (uint32_t split = 0; split < call.num_splits; ++split) {
    const PartialResults results(p, call, split, kv_head);
    const float* statistics = results.statistics(p, pair);
    const float factor = ptx::exp2_approx(statistics[0] - max);
    weight = fmaf(statistics[1], factor, weight);
    const ptx::Words4 values = ptx::load_16_bytes_keep(results.sums(p, pair) + dim);
#pragma unroll
    for (uint32_t i = 0; i < kLaneDims; ++i)
      sums[i] = fmaf(ptx::as_float(values.word[i]), factor, sums[i]);
  }
  auto* out = reinterpret_cast<uint32_t*>(p.out.row(row) + head * p.v_head_dim + dim);
  out[0] = ptx::to_bf16x2(sums[0] / weight, sums[1] / weight);
  out[1] = ptx::to_bf16x2(sums[2] / weight, sums[3] / weight);
}

/// A unit is one q head of one row; each compute warp does every eighth unit of its block.
__device__ inline void combine_attention(const AttentionParams& p, UnitRange range) {
  const AttentionCall call(p);
  for (uint32_t u = range.first * kComputeWarps + threadIdx.x / 32;
       u < p.num_rows * p.num_q_heads; u += kComputeWarps * range.stride)
    combine_head(p, call, u / p.num_q_heads, u % p.num_q_heads);
}

}  // namespace mimo_rt::cuda
