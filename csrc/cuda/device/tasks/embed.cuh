// The embed task: the first row of the residual stream, and what the rest of a step needs to know
// of the row's position: where its keys and values go, and the angles of the rotary embedding.
#pragma once

#include "cuda/device/tasks/weight_stream.cuh"
#include "cuda/step_params.h"

namespace mimo_rt::cuda {

/// One warp. F32 tables are rounded once.
__device__ inline void copy_embedding(const EmbedParams& p, uint32_t token) {
  const uint64_t row = static_cast<uint32_t>(p.step->token_ids[token]);
  const uint8_t* table = p.table + row * p.k * (p.is_f32 ? 4 : 2);
  for (uint32_t k = threadIdx.x % 32 * 8; k < p.k; k += 256) {
    ptx::Words4 words;
    if (p.is_f32) {
      const ptx::Words4 low = ptx::load_16_bytes_once(table + k * 4);
      const ptx::Words4 high = ptx::load_16_bytes_once(table + k * 4 + 16);
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const ptx::Words4& half = i < 2 ? low : high;
        words.word[i] = ptx::to_bf16x2(ptx::as_float(half.word[i % 2 * 2]),
                                       ptx::as_float(half.word[i % 2 * 2 + 1]));
      }
    } else {
      words = ptx::load_16_bytes_once(table + k * 2);
    }
    *reinterpret_cast<ptx::Words4*>(p.out.row(token) + k) = words;
  }
}

/// One warp, a layer per lane: the rows of head 0 for this token's keys and values.
__device__ inline void place_token(const StepTables& step, uint32_t token) {
  const uint32_t position = step.positions[token], seq = step.seq_idx[token];
  for (uint32_t layer = threadIdx.x % 32; layer < step.num_layers; layer += 32) {
    const KvView& kv = step.kv[layer];
    const uint32_t page = position / kv.block_rows, row = position % kv.block_rows;
    const uint64_t block = kv.pages ? kv.pages[uint64_t{seq} * step.pages_per_seq + page] : seq;
    auto* begin = const_cast<uint8_t*>(kv.blocks) + block * kv.block_bytes;
    const uint64_t entry = uint64_t{layer} * step.max_tokens + token;
    step.k_rows[entry] = reinterpret_cast<uint16_t*>(begin) + uint64_t{row} * kv.k_stride;
    step.v_rows[entry] =
        reinterpret_cast<uint16_t*>(begin + kv.v_begin) + uint64_t{row} * kv.v_stride;
  }
}

/// One warp, a pair per lane.
__device__ inline void turn_token(const StepTables& step, uint32_t token) {
  const uint32_t position = step.positions[token];
  for (uint32_t i = 0; i < step.num_rotary; ++i) {
    const RotaryTable& table = step.rotary[i];
    const double* coarse = table.coarse + uint64_t{position / kFinePositions} * table.rotary_dim;
    const double* fine = table.fine + uint64_t{position % kFinePositions} * table.rotary_dim;
    float* out = table.cos_sin + uint64_t{token} * table.rotary_dim;
    for (uint32_t d = threadIdx.x % 32 * 2; d < table.rotary_dim; d += 64) {
      out[d] = static_cast<float>(coarse[d] * fine[d] - coarse[d + 1] * fine[d + 1]);
      out[d + 1] = static_cast<float>(coarse[d + 1] * fine[d] + coarse[d] * fine[d + 1]);
    }
  }
}

/// A unit is one token; each compute warp does every eighth unit of its block.
__device__ inline void compute_embed(const EmbedParams& p, UnitRange range) {
  for (uint32_t u = range.first + threadIdx.x / 32 * range.stride; u < range.limit(p.num_tokens);
       u += kComputeWarps * range.stride) {
    copy_embedding(p, u);
    place_token(*p.step, u);
    turn_token(*p.step, u);
  }
}

}  // namespace mimo_rt::cuda
