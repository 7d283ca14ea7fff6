// The draft's tasks on whole rows: the norm of its context, the first row of its residual stream, its
// drafts. The first two also set what follows from their rows' positions, as embed does.
#pragma once

#include "cuda/device/tasks/embed.cuh"
#include "cuda/device/tasks/rms_norm.cuh"
#include "cuda/device/tasks/sample_rows.cuh"
#include "cuda/draft_params.h"

namespace mimo_rt::cuda {

/// One thread, whenever context_begin has been set: where the features of the rows of context are.
__device__ inline void list_context(const StepTables& step) {
  for (uint32_t r = 0; r < step.num_context_rows; ++r)
    step.draft->context_ids[r] = step.kv[0].features.row_idx(step.context_begin + r);
}

/// All compute warps. A unit is one row.
__device__ inline void compute_context_norm(NormShared& shared, const ContextNormParams& p, UnitRange range) {
  const StepTables& step = *p.step;
  for (uint32_t u = range.first + threadIdx.x / 32 * range.stride;
       u < range.limit(p.norm.num_tokens); u += kComputeWarps * range.stride) {
    const uint32_t position = step.context_begin + u;
    place_row(step.kv[0].layers, step.draft->context, u, position);
    turn_row(step.draft->context_rotary, u, position);
  }
  compute_rms_norm(shared, p.norm, range);
}

/// A unit is one row of the block, whose row 0 is at the step's first position.
__device__ inline void compute_draft_embed(const DraftEmbedParams& p, UnitRange range) {
  const EmbedParams& embed = p.embed;
  for (uint32_t u = range.first + threadIdx.x / 32 * range.stride;
       u < range.limit(embed.num_tokens); u += kComputeWarps * range.stride) {
    if (u == 0)
      copy_embedding(embed, 0);
    else
      for (uint32_t k = threadIdx.x % 32 * 8; k < embed.k; k += 256)
        *reinterpret_cast<ptx::Words4*>(embed.out.row(u) + k) = ptx::load_16_bytes_keep(p.mask + k);
    turn_row(embed.step->draft->block_rotary, u, embed.step->positions[0] + u);
  }
}

/// All compute warps. A unit is one row of the block.
__device__ inline void sample_drafts(DrawShared& shared, const DraftSampleParams& p,
                                     UnitRange range) {
  for (uint32_t u = range.first; u < range.limit(p.num_rows); u += range.stride)
    if (u != 0) sample_row(shared, *p.sample, u - 1);
}

}  // namespace mimo_rt::cuda
