// The embed task: the first row of the residual stream, and what the rest of a step needs to know
// of the row's position: where its keys and values go, and the angles of the rotary embedding; with a
// draft, where its features go.
#pragma once

#include "cuda/device/tasks/weight_stream.cuh"
#include "cuda/draft_params.h"

namespace mimo_rt::cuda {

/// One warp: row `token` of the output. F32 tables are rounded once.
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

/// One warp, a layer per lane: the rows of head 0 for the keys and values of row `row_idx`, whose sequence has `layers`.
__device__ inline void place_row(const KvView* layers, const RowPlaces& places, uint32_t row_idx, uint32_t position) {
  for (uint32_t layer = threadIdx.x % 32; layer < places.num_layers; layer += 32) {
    const KvView& kv = layers[places.first_layer + layer];
    const uint32_t page = position / kv.block_rows, row = position % kv.block_rows;
    const uint64_t block = kv.pages ? kv.pages[page] : 0;
    auto* begin = const_cast<uint8_t*>(kv.blocks) + block * kv.block_bytes;
    const uint64_t entry = uint64_t{layer} * places.max_rows + row_idx;
    places.k_rows[entry] = reinterpret_cast<uint16_t*>(begin) + uint64_t{row} * kv.k_stride;
    places.v_rows[entry] =
        reinterpret_cast<uint16_t*>(begin + kv.v_begin) + uint64_t{row} * kv.v_stride;
  }
}

/// One warp, a pair per lane: the angles of row `row_idx`.
__device__ inline void turn_row(const RotaryTable& table, uint32_t row_idx, uint32_t position) {
  const double* coarse = table.coarse + uint64_t{position / kFinePositions} * table.rotary_dim;
  const double* fine = table.fine + uint64_t{position % kFinePositions} * table.rotary_dim;
  float* out = table.cos_sin + uint64_t{row_idx} * table.rotary_dim;
  for (uint32_t d = threadIdx.x % 32 * 2; d < table.rotary_dim; d += 64) {
    out[d] = static_cast<float>(coarse[d] * fine[d] - coarse[d + 1] * fine[d + 1]);
    out[d + 1] = static_cast<float>(coarse[d + 1] * fine[d] + coarse[d] * fine[d + 1]);
  }
}

/// One warp: what follows from a token's position.
__device__ inline void place_token(const StepTables& step, uint32_t token) {
  const uint32_t position = step.positions[token];
  place_row(step.kv[token].layers, step.places, token, position);
  for (uint32_t i = 0; i < step.num_rotary; ++i) turn_row(step.rotary[i], token, position);
  if (!step.draft || threadIdx.x % 32 != 0) return;
  const FeatureRing& ring = step.kv[token].features;
  step.draft->captured_rows[token] = ring.rows + uint64_t{ring.row_idx(position)} * ring.width;
}

/// A unit is one token; each compute warp does every eighth unit of its block.
__device__ inline void compute_embed(const EmbedParams& p, UnitRange range) {
  for (uint32_t u = range.first + threadIdx.x / 32 * range.stride; u < range.limit(p.num_tokens);
       u += kComputeWarps * range.stride) {
    copy_embedding(p, u);
    place_token(*p.step, u);
  }
}

}  // namespace mimo_rt::cuda
