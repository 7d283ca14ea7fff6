// Attention over one kv head: online softmax over blocks of 16 keys.
//
// A block's keys and values are widened to FP32 in scratch once and used by every q head of every
// token. Blocks are counted from the first visible key and cross segment boundaries, so pages
// and rings never change a bit. Per head (m: running maximum, l: running denominator, o: running
// output):
//   m' = max(m, max_j s_j)   p_j = e^(s_j - m')   l = l e^(m - m') + sum_j p_j   o = o e^(m - m') +
//   sum_j p_j v_j
// A sink starts as m = sink, l = 1. Bound by the KV bytes for one q head, by the FMA units for
// eight. The includer has included the simd.h of its ISA.
#pragma once

#include "entries.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

enum : uint32_t { kBlockKeys = 16 };

MIMO_RT_INLINE uint32_t padded(uint32_t dim) { return (dim + kLanes - 1) / kLanes * kLanes; }

/// A head is one q head of one token.
struct Scratch {
  uint32_t num_heads;
  uint32_t qk_dim, v_dim;  ///< padded to a multiple of kLanes; padding is zero
  float* scores;           ///< [num_heads, kBlockKeys]
  float* q;                ///< [num_heads, qk_dim], scaled
  float* out;              ///< [num_heads, v_dim]
  float* max;              ///< [num_heads]
  float* sum;              ///< [num_heads]
  float* factor;           ///< [num_heads] for what was accumulated before the block
  float* k;                ///< [kBlockKeys, qk_dim]
  float* v;                ///< [kBlockKeys, v_dim]
};

/// Where the next key comes from.
struct Cursor {
  const KvSegment* segment;
  const KvSegment* end;
  uint32_t key;
};

MIMO_RT_INLINE void widen_row(const bf16_t* x, uint32_t dim, float* out) {
  for (uint32_t i = 0; i < dim; i += kLanes) store(out + i, load_bf16(x + i, dim - i));
}

/// Fills scratch with up to kBlockKeys keys; returns how many.
static uint32_t load_block(const AttendArgs& args, const Scratch& s, Cursor& cursor) {
  uint32_t num_keys = 0;
  while (num_keys < kBlockKeys && cursor.segment != cursor.end) {
    if (cursor.key == cursor.segment->num_keys) {
      ++cursor.segment;
      cursor.key = 0;
      continue;
    }
    const uint64_t key = cursor.key++;
    widen_row(cursor.segment->k + key * args.qk_head_dim, args.qk_head_dim,
              s.k + num_keys * s.qk_dim);
    widen_row(cursor.segment->v + key * args.v_head_dim, args.v_head_dim, s.v + num_keys * s.v_dim);
    ++num_keys;
  }
  return num_keys;
}

/// scores[h][j] = q_h . k_j for H (1 or 2) heads; four keys at a time share the loads of q, the heads
/// those of the keys. Rows past the block's keys are stale but finite or ignored.
template <uint32_t H>
MIMO_RT_INLINE void score_block(const float* q, const Scratch& s, float* scores) {
  const float* q1 = q + (H - 1) * s.qk_dim;
  for (uint32_t j = 0; j < kBlockKeys; j += 4) {
    const float* k = s.k + j * s.qk_dim;
    Vector sums0[4] = {zero(), zero(), zero(), zero()}, sums1[4] = {zero(), zero(), zero(), zero()};
    for (uint32_t i = 0; i < s.qk_dim; i += kLanes) {
      const Vector x0 = load(q + i), x1 = load(q1 + i);
#pragma GCC unroll 4
      for (uint32_t n = 0; n < 4; ++n) {
        const Vector key = load(k + n * s.qk_dim + i);
        sums0[n] = multiply_add(x0, key, sums0[n]);
        if constexpr (H == 2) sums1[n] = multiply_add(x1, key, sums1[n]);
      }
    }
    store_sums(sums0, scores + j);
    if constexpr (H == 2) store_sums(sums1, scores + kBlockKeys + j);
  }
}

/// Scores become probabilities; returns the factor for what was accumulated before.
MIMO_RT_INLINE float softmax_block(float* scores, uint32_t num_keys, float& max, float& sum) {
  constexpr uint32_t kVectors = uint32_t{kBlockKeys} / kLanes;
  Vector x[kVectors];
  for (uint32_t i = 0; i < kVectors; ++i) {
    const uint32_t left = num_keys > i * kLanes ? num_keys - i * kLanes : 0;
    x[i] = first_lanes_or(load(scores + i * kLanes), left, splat(-3.4e38f));
  }
  Vector largest = x[0];
  for (uint32_t i = 1; i < kVectors; ++i) largest = maximum(largest, x[i]);
  const float block_max = max_lanes(largest);
  const float new_max = block_max > max ? block_max : max;
  for (uint32_t i = 0; i < kVectors; ++i) {
    x[i] = exp_negative(subtract(x[i], splat(new_max)));
    store(scores + i * kLanes, x[i]);
  }
  const float factor = first_lane(exp_negative(splat(max - new_max)));
  Vector total = x[0];
  for (uint32_t i = 1; i < kVectors; ++i) total = add(total, x[i]);
  sum = __builtin_fmaf(sum, factor, sum_lanes(total));
  max = new_max;
  return factor;
}

/// out = out * factor + sum_j p_j v_j, C vectors of the head dimension from `i`.
template <uint32_t C>
MIMO_RT_INLINE void mix_columns(const Scratch& s, const float* p, uint32_t num_keys, float factor,
                                uint32_t i, float* out) {
  Vector acc[C];
  for (uint32_t c = 0; c < C; ++c) acc[c] = multiply(load(out + i + c * kLanes), splat(factor));
  for (uint32_t j = 0; j < num_keys; ++j) {
    const Vector weight = splat_at(p + j);
    const float* v = s.v + j * s.v_dim + i;
#pragma GCC unroll 8
    for (uint32_t c = 0; c < C; ++c) acc[c] = multiply_add(weight, load(v + c * kLanes), acc[c]);
  }
  for (uint32_t c = 0; c < C; ++c) store(out + i + c * kLanes, acc[c]);
}

/// out = out * factor + sum_j p_j v_j.
static void mix_block(const Scratch& s, uint32_t head, uint32_t num_keys) {
  const float* p = s.scores + head * kBlockKeys;
  float* out = s.out + head * s.v_dim;
  uint32_t i = 0;
  for (; i + 8 * kLanes <= s.v_dim; i += 8 * kLanes)
    mix_columns<8>(s, p, num_keys, s.factor[head], i, out);
  for (; i < s.v_dim; i += kLanes) mix_columns<1>(s, p, num_keys, s.factor[head], i, out);
}

/// The block's keys are the first `num_loaded` of scratch, key `first` and the following ones.
static void attend_block(const AttendArgs& args, const Scratch& s, uint32_t first,
                         uint32_t num_loaded) {
  uint32_t h = 0;
  for (; h + 2 <= s.num_heads; h += 2)
    score_block<2>(s.q + h * s.qk_dim, s, s.scores + h * kBlockKeys);
  if (h < s.num_heads) score_block<1>(s.q + h * s.qk_dim, s, s.scores + h * kBlockKeys);
  const auto num_visible = [&](uint32_t head) {
    const uint32_t end = args.rows[head / args.num_q].num_keys;
    const uint32_t left = end > first ? end - first : 0;
    return left < num_loaded ? left : num_loaded;
  };
  // One after the other: the latencies of a head's softmax overlap those of the next.
  for (h = 0; h < s.num_heads; ++h)
    if (const uint32_t num_keys = num_visible(h))
      s.factor[h] = softmax_block(s.scores + h * kBlockKeys, num_keys, s.max[h], s.sum[h]);
  for (h = 0; h < s.num_heads; ++h)
    if (const uint32_t num_keys = num_visible(h)) mix_block(s, h, num_keys);
}

static Scratch layout_scratch(const AttendArgs& args) {
  Scratch s;
  s.num_heads = args.num_rows * args.num_q;
  s.qk_dim = padded(args.qk_head_dim);
  s.v_dim = padded(args.v_head_dim);
  s.scores = args.scratch;
  s.q = s.scores + uint64_t{s.num_heads} * kBlockKeys;
  s.out = s.q + uint64_t{s.num_heads} * s.qk_dim;
  s.k = s.out + uint64_t{s.num_heads} * s.v_dim;
  s.v = s.k + uint64_t{kBlockKeys} * s.qk_dim;
  s.max = s.v + uint64_t{kBlockKeys} * s.v_dim;
  s.sum = s.max + s.num_heads;
  s.factor = s.sum + s.num_heads;
  return s;
}

static void start(const AttendArgs& args, const Scratch& s) {
  const Vector scale = splat(args.scale);
  for (uint32_t h = 0; h < s.num_heads; ++h) {
    const uint32_t q_head = h % args.num_q;
    float* q = s.q + h * s.qk_dim;
    widen_row(args.rows[h / args.num_q].q + uint64_t{q_head} * args.qk_head_dim, args.qk_head_dim,
              q);
    for (uint32_t i = 0; i < s.qk_dim; i += kLanes) store(q + i, multiply(load(q + i), scale));
    for (uint32_t i = 0; i < s.v_dim; i += kLanes) store(s.out + h * s.v_dim + i, zero());
    const bool has_sink = args.sink_logit && args.sink_logit[q_head] > -1e30f;
    s.max[h] = has_sink ? args.sink_logit[q_head] : -1e30f;
    s.sum[h] = has_sink ? 1.0f : 0.0f;
  }
}

static void finish(const AttendArgs& args, const Scratch& s) {
  for (uint32_t h = 0; h < s.num_heads; ++h) {
    const Vector inverse = splat(1.0f / s.sum[h]);
    bf16_t* out =
        args.rows[h / args.num_q].out + uint64_t{h % args.num_q} * args.v_head_dim;
    for (uint32_t i = 0; i < args.v_head_dim; i += kLanes)
      store_bf16(out + i, multiply(load(s.out + h * s.v_dim + i), inverse), args.v_head_dim - i);
  }
}

}  // namespace

uint64_t attend_scratch_floats(uint32_t num_heads, uint32_t qk_head_dim, uint32_t v_head_dim) {
  const uint64_t dims = uint64_t{padded(qk_head_dim)} + padded(v_head_dim);
  return (uint64_t{num_heads} + kBlockKeys) * dims + (kBlockKeys + 3) * uint64_t{num_heads};
}

void attend(const AttendArgs& args) {
  const Scratch s = layout_scratch(args);
  start(args, s);
  for (uint64_t i = 0; i < kBlockKeys * uint64_t{s.qk_dim}; ++i) s.k[i] = 0.0f;
  Cursor cursor = {args.segments, args.segments + args.num_segments, 0};
  for (uint32_t first = 0; const uint32_t num_loaded = load_block(args, s, cursor);
       first += num_loaded)
    attend_block(args, s, first, num_loaded);
  finish(args, s);
}

}  // namespace mimo_rt::cpu::MIMO_RT_ISA
