// The third sampling task: filters, the draw, and what becomes of a draft. A unit is one row.
#pragma once

#include "cuda/device/tasks/select_tokens.cuh"

namespace mimo_rt::cuda {

/// A row in the hands of one block.
struct TokenDraw {
  DrawShared& shared;
  const SampleRow row;

  __device__ uint64_t uniform_bits(DrawUse use) const {
    const SamplingRules& rules = row.p.rules;
    const uint32_t block_row = use == DrawUse::sample ? 0 : row.row + 1;
    return uniform_bits_at(rules.seed, rules.sequence_id, *row.p.position + row.row,
                           draw_stream(block_row, use));
  }

  /// Sets to 0 what top-k, top-p and min-p leave out.
  __device__ void filter(const WeightScale& scale) const {
    const SampleParams& p = row.p;
    const TokenSearch search{shared, row, scale};
    const TokenList all{nullptr, p.vocab_size};
    if (p.rules.top_k != 0 && p.rules.top_k < p.vocab_size) {
      uint64_t count = 0;
      search.for_each(all, [&](const TokenOrder&, uint64_t) { ++count; });
      if (block_sum(shared, count) > p.rules.top_k)
        search.drop_after(search.find(p.rules.top_k, [](uint64_t) { return uint64_t{1}; }));
    }
    if (p.rules.top_p < 1.0f) {
      uint64_t sum = 0;
      search.for_each(all, [&](const TokenOrder&, uint64_t weight) { sum += weight; });
      const uint64_t target = top_p_target(p.rules.top_p, block_sum(shared, sum));
      search.drop_after(search.find(target, [](uint64_t weight) { return weight; }));
    }
    if (p.rules.min_p > 0.0f)
      for (uint32_t id = threadIdx.x; id < p.vocab_size; id += kComputeWarps * 32)
        if (!scale.passes_min_p(row.weights()[id], p.rules.min_p)) row.weights()[id] = 0;
    compute_barrier();
  }

  /// Sums of the slices: as the second task left them, or once more. @return the total
  __device__ uint64_t sum_slices(bool has_changed) const {
    const uint32_t num_slices = SliceUnit::num_slices(row.p), lane_idx = threadIdx.x % 32;
    uint64_t total = 0;
    for (uint32_t slice = threadIdx.x / 32; slice < num_slices; slice += kComputeWarps) {
      const SliceUnit unit(row.p, row.row * num_slices + slice);
      uint64_t sum = 0;
      for (uint32_t id = unit.begin + lane_idx; has_changed && id < unit.end; id += 32)
        sum += row.weights()[id];
      sum = has_changed ? warp_sum(sum) : row.p.scratch.slice_sums[row.row * num_slices + slice];
      if (lane_idx == 0) {
        shared.slice_sums[slice] = sum;
        total += sum;
      }
    }
    return block_sum(shared, total);
  }

  /// The token, ids ascending, whose share of [0, total) holds the uniform number.
  __device__ uint32_t draw(uint64_t uniform, uint64_t total) const {
    uint64_t rank = draw_rank(uniform, total);
    uint32_t slice = 0;
    for (; rank >= shared.slice_sums[slice]; ++slice) rank -= shared.slice_sums[slice];
    constexpr uint32_t kLaneTokens = kSliceTokens / 32;
    if (threadIdx.x < 32) {
      const uint32_t slice_end = (slice + 1) * kSliceTokens;
      const uint32_t end = slice_end < row.p.vocab_size ? slice_end : row.p.vocab_size;
      uint32_t id = slice * kSliceTokens + threadIdx.x * kLaneTokens;
      const uint32_t lane_end = id + kLaneTokens < end ? id + kLaneTokens : end;
      uint64_t own = 0;
      for (uint32_t i = id; i < lane_end; ++i) own += row.weights()[i];
      const uint64_t up_to = sum_up_to(own);
      if (rank < up_to && rank >= up_to - own) {  // one lane
        for (rank -= up_to - own; rank >= row.weights()[id]; ++id) rank -= row.weights()[id];
        shared.found = id;
      }
    }
    compute_barrier();
    return shared.found;
  }

  /// The weight of a token in the distribution that the draft was drawn from.
  __device__ uint64_t proposal_weight(uint32_t id) const {
    const SampleParams& p = row.p;
    if (!p.proposal_ids) return p.proposals.weights[uint64_t{row.row} * p.vocab_size + id];
    const uint32_t column = lower_bound(p.num_proposal_ids, id, [&](uint32_t i) {
      return static_cast<uint32_t>(p.proposal_ids[i]);
    });
    const bool is_there = column < p.num_proposal_ids &&
                          static_cast<uint32_t>(p.proposal_ids[column]) == id;
    return is_there ? p.proposals.weights[uint64_t{row.row} * p.num_proposal_ids + column] : 0;
  }

  /// Turns p into max(p - q, 0), q in units of p.
  __device__ void subtract_proposal(uint64_t p_total) const {
    const SampleParams& p = row.p;
    const uint64_t q_total = p.proposals.totals[row.row];
    for (uint32_t id = threadIdx.x; id < p.vocab_size; id += kComputeWarps * 32) {
      uint64_t& weight = row.weights()[id];
      const uint64_t q = weight != 0 ? proposal_weight(id) : 0;
      if (q == 0) continue;
      const uint64_t less = rescale_weight(q, q_total, p_total);
      weight = less < weight ? weight - less : 0;
    }
    compute_barrier();
  }

  /// The draft, if it is kept; else a token of the rest.
  __device__ uint32_t verify(uint32_t draft, uint64_t total) const {
    const SampleParams& p = row.p;
    const uint64_t rescaled =
        rescale_weight(proposal_weight(draft), p.proposals.totals[row.row], total);
    const bool is_kept =
        accepts_draft(uniform_bits(DrawUse::accept), rescaled, row.weights()[draft]);
    compute_barrier();  // all have read the weight of the draft
    if (is_kept) return draft;
    subtract_proposal(total);
    return draw(uniform_bits(DrawUse::residual), sum_slices(true));
  }

  /// A token of p, or kNoToken.
  __device__ uint32_t choose() const {
    const SampleParams& p = row.p;
    const bool is_draft = p.role == SampleRole::draft;
    const BestToken best = best_of_slices(p, row.row);
    if (p.rules.temperature == 0.0f) return best.id;
    const WeightScale scale(best.score, static_cast<double>(p.rules.temperature), p.vocab_size);
    const bool is_filtered = (p.rules.top_k != 0 && p.rules.top_k < p.vocab_size) ||
                             p.rules.top_p < 1.0f || p.rules.min_p > 0.0f;
    if (best.id != kNoToken && is_filtered) filter(scale);
    uint64_t total = sum_slices(is_filtered);
    if (is_draft && threadIdx.x == 0) {
      if (total == 0) row.weights()[0] = 1;  // no finite logit: token 0 is proposed
      p.scratch.totals[row.row] = total != 0 ? total : 1;
    }
    if (total == 0) return kNoToken;
    if (is_draft) return draw(uniform_bits(DrawUse::propose), total);
    if (p.proposals.weights && row.row + 1 < p.num_rows)
      return verify(static_cast<uint32_t>(p.block[row.row + 1]), total);
    return draw(uniform_bits(DrawUse::sample), total);
  }
};

__device__ inline void draw_tokens(DrawShared& shared, const SampleParams& p, UnitRange range) {
  const uint32_t limit = range.limit(p.num_rows);  // thread 0 may prepare the next round already
  for (uint32_t row = range.first; row < limit; row += range.stride) {
    const TokenDraw draw{shared, {p, row}};
    const uint32_t id = draw.choose();
    const int32_t none = p.role == SampleRole::draft ? 0 : -1;
    if (threadIdx.x == 0)
      p.tokens[row] = id == kNoToken ? none : static_cast<int32_t>(draw.row.token(id));
    compute_barrier();  // before the next row overwrites what was found
  }
}

/// One thread.
__device__ inline void accept_drafts(const AcceptParams& p) {
  uint32_t row = 0;
  while (row + 1 < p.num_rows && p.tokens[row] >= 0 && p.tokens[row] == p.block[row + 1]) ++row;
  *p.num_accepted = row;
  *p.next_token = p.tokens[row];
}

}  // namespace mimo_rt::cuda
