// The third step of sampling: filters, the draw, and what becomes of a draft. A unit is one row.
//
// What the filters keep is mostly a few tokens near the best, which the second step has listed: they are the first ones
// in the order that the filters go by, so where these stop within the list, nobody looks at the whole row again.
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

  __device__ bool has_top_k() const { return row.p.rules.top_k != 0 && row.p.rules.top_k < row.p.vocab_size; }

  /// The tokens near the best.
  __device__ TokenList near_tokens() const {
    const SampleParams& p = row.p;
    const uint32_t num_slices = SliceUnit::num_slices(p), lane_idx = threadIdx.x % 32;
    const uint32_t* counts = p.scratch.near_counts + row.row * num_slices;
    const uint32_t per_thread = (num_slices + kComputeWarps * 32 - 1) / (kComputeWarps * 32);
    const uint32_t first = threadIdx.x * per_thread;
    uint32_t own = 0;
    for (uint32_t i = first; i < first + per_thread && i < num_slices; ++i) own += counts[i];
    const BlockSum sum(shared, own);
    auto place = static_cast<uint32_t>(sum.up_to) - own;
    for (uint32_t i = first; i < first + per_thread && i < num_slices; place += counts[i++]) shared.near_places[i] = place;
    compute_barrier();
    for (uint32_t slice = threadIdx.x / 32; slice < num_slices; slice += kComputeWarps)
      for (uint32_t i = lane_idx; i < counts[slice]; i += 32)
        row.list(1)[shared.near_places[slice] + i] = row.list(0)[slice * kSliceTokens + i];
    compute_barrier();
    return {row.list(1), static_cast<uint32_t>(sum.total)};
  }

  /// Sum of the weights, when filters may have changed them.
  __device__ uint64_t sum_of(const TokenList& list) const {
    uint64_t sum = 0;
    for (uint32_t i = threadIdx.x; i < list.size; i += kComputeWarps * 32) sum += row.weights()[list[i]];
    return block_sum(shared, sum);
  }

  /// Whether the filters keep nothing outside of the list, which has the first tokens of the row. `sum`, `total`: their
  /// weight and the row's.
  __device__ bool is_enough(const TokenList& list, uint64_t sum, uint64_t total) const {
    const SamplingRules& rules = row.p.rules;
    if (has_top_k()) return list.size >= rules.top_k;
    if (rules.top_p < 1.0f && sum >= top_p_target(rules.top_p, total)) return true;
    return rules.min_p >= kNearWeight;
  }

  /// Sets to 0 what top-k, top-p and min-p leave out of the list that is returned.
  __device__ TokenList filter(const WeightScale& scale, uint64_t total) const {
    const SampleParams& p = row.p;
    const TokenSearch search{shared, row, scale};
    const bool has_top_p = p.rules.top_p < 1.0f;
    TokenList list{nullptr, p.vocab_size};
    uint64_t sum = total;  // of the list
    if (p.role == SampleRole::target) {  // a draft's weights are looked up by token
      const TokenList near = near_tokens();
      const uint64_t near_sum = has_top_p && !has_top_k() ? sum_of(near) : total;  // after top-k it is another
      if (is_enough(near, near_sum, total)) list = near, sum = near_sum;
    }
    if (has_top_k()) {
      uint64_t count = 0;
      search.for_each(list, [&](const TokenOrder&, uint64_t) { ++count; });
      if (block_sum(shared, count) > p.rules.top_k)
        search.drop_after(list, search.find(list, p.rules.top_k, [](uint64_t) { return uint64_t{1}; }));
      if (has_top_p) total = sum = sum_of(list);
    }
    if (has_top_p && sum >= top_p_target(p.rules.top_p, total))  // else min-p ends before it
      search.drop_after(list, search.find(list, top_p_target(p.rules.top_p, total), [](uint64_t w) { return w; }));
    if (p.rules.min_p > 0.0f)
      for (uint32_t i = threadIdx.x; i < list.size; i += kComputeWarps * 32)
        if (!scale.passes_min_p(row.weights()[list[i]], p.rules.min_p)) row.weights()[list[i]] = 0;
    compute_barrier();
    return list;
  }

  /// Sums of the slices: as the second step left them, or once more. @return the total
  __device__ uint64_t sum_slices(bool has_changed) const {
    const uint32_t num_slices = SliceUnit::num_slices(row.p), lane_idx = threadIdx.x % 32;
    const uint64_t* known = row.p.scratch.slice_sums + row.row * num_slices;
    uint64_t total = 0;
    if (!has_changed) {
      for (uint32_t slice = threadIdx.x; slice < num_slices; slice += kComputeWarps * 32)
        total += shared.slice_sums[slice] = known[slice];
      return block_sum(shared, total);
    }
    for (uint32_t slice = threadIdx.x / 32; slice < num_slices; slice += kComputeWarps) {
      const SliceUnit unit(row.p, row.row * num_slices + slice);
      uint64_t sum = 0;
#pragma unroll 8
      for (uint32_t id = unit.begin + lane_idx; id < unit.end; id += 32) sum += row.weights()[id];
      sum = warp_sum(sum);
      if (lane_idx == 0) total += shared.slice_sums[slice] = sum;
    }
    return block_sum(shared, total);
  }

  /// The token of the list, ids ascending, whose share of [0, total) holds the uniform number. Of all tokens, the sums of
  /// the slices are known.
  __device__ uint32_t draw(const TokenList& list, uint64_t uniform, uint64_t total) const {
    uint64_t rank = draw_rank(uniform, total);
    const auto weight_at = [&](uint32_t i) { return row.weights()[list[i]]; };
    if (list.ids) return list[place_of_rank(shared, rank, list.size, weight_at)];
    const uint32_t slice = place_of_rank(shared, rank, SliceUnit::num_slices(row.p),
                                         [&](uint32_t i) { return shared.slice_sums[i]; });
    const uint32_t begin = slice * kSliceTokens, rest = row.p.vocab_size - begin;
    return begin + place_of_rank(shared, rank, rest < kSliceTokens ? rest : kSliceTokens,
                                 [&](uint32_t i) { return row.weights()[begin + i]; });
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
  __device__ void subtract_proposal(const TokenList& list, uint64_t p_total) const {
    const uint64_t q_total = row.p.proposals.totals[row.row];
    for (uint32_t i = threadIdx.x; i < list.size; i += kComputeWarps * 32) {
      const uint32_t id = list[i];
      uint64_t& weight = row.weights()[id];
      const uint64_t q = weight != 0 ? proposal_weight(id) : 0;
      if (q == 0) continue;
      const uint64_t less = rescale_weight(q, q_total, p_total);
      weight = less < weight ? weight - less : 0;
    }
    compute_barrier();
  }

  /// The draft, if it is kept; else a token of the rest.
  __device__ uint32_t verify(const TokenList& list, uint32_t draft, uint64_t total) const {
    const SampleParams& p = row.p;
    const uint64_t rescaled =
        rescale_weight(proposal_weight(draft), p.proposals.totals[row.row], total);
    const uint64_t weight = list.contains(draft) ? row.weights()[draft] : 0;
    const bool is_kept = accepts_draft(uniform_bits(DrawUse::accept), rescaled, weight);
    compute_barrier();  // all have read the weight of the draft
    if (is_kept) return draft;
    subtract_proposal(list, total);
    return draw(list, uniform_bits(DrawUse::residual), list.ids ? sum_of(list) : sum_slices(true));
  }

  /// A token of p, or kNoToken.
  __device__ uint32_t choose() const {
    const SampleParams& p = row.p;
    const bool is_draft = p.role == SampleRole::draft;
    const BestToken best = best_of_row(p, row.row);
    if (p.rules.temperature == 0.0f) return best.id;
    const WeightScale scale(best.score, static_cast<double>(p.rules.temperature), p.vocab_size);
    const bool is_filtered = has_top_k() || p.rules.top_p < 1.0f || p.rules.min_p > 0.0f;
    TokenList list{nullptr, p.vocab_size};
    uint64_t total = sum_slices(false);
    if (total != 0 && is_filtered) {
      list = filter(scale, total);
      total = list.ids ? sum_of(list) : sum_slices(true);
    }
    if (is_draft && threadIdx.x == 0) {
      if (total == 0) row.weights()[0] = 1;  // no finite logit: token 0 is proposed
      p.scratch.totals[row.row] = total != 0 ? total : 1;
    }
    if (total == 0) return kNoToken;
    if (is_draft) return draw(list, uniform_bits(DrawUse::propose), total);
    if (p.proposals.weights && row.row + 1 < p.num_rows)
      return verify(list, static_cast<uint32_t>(p.block[row.row + 1]), total);
    return draw(list, uniform_bits(DrawUse::sample), total);
  }
};

/// Not inlined: it is long, and called in several places.
__device__ __attribute__((noinline)) inline void draw_tokens(DrawShared& shared, const SampleParams& p,
                                                             UnitRange range) {
  for (uint32_t row = range.first; row < range.limit(p.num_rows); row += range.stride) {
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
