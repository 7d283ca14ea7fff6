// Attention of one token over one kv head: online softmax over blocks of 16 keys.
//
// A block's keys and values are widened to FP32 in scratch once and used by every q head that
// shares them. Blocks are counted from the first visible key and cross segment boundaries, so pages
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

struct Scratch {
  uint32_t qk_dim, v_dim;  ///< padded to a multiple of kLanes; padding is zero
  float* q;                ///< [num_q, qk_dim], scaled
  float* out;              ///< [num_q, v_dim]
  float* max;              ///< [num_q]
  float* sum;              ///< [num_q]
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

/// scores[j] = q . k_j; four keys at a time share the loads of q. Rows past num_keys are stale but
/// finite or ignored.
MIMO_RT_INLINE void score_block(const float* q, const Scratch& s, float* scores) {
  for (uint32_t j = 0; j < kBlockKeys; j += 4) {
    const float* k = s.k + j * s.qk_dim;
    Vector sums[4] = {zero(), zero(), zero(), zero()};
    for (uint32_t i = 0; i < s.qk_dim; i += kLanes) {
      const Vector x = load(q + i);
#pragma GCC unroll 4
      for (uint32_t n = 0; n < 4; ++n)
        sums[n] = multiply_add(x, load(k + n * s.qk_dim + i), sums[n]);
    }
    store_sums(sums, scores + j);
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

static Scratch layout_scratch(const AttendArgs& args) {
  Scratch s;
  s.qk_dim = padded(args.qk_head_dim);
  s.v_dim = padded(args.v_head_dim);
  s.q = args.scratch;
  s.out = s.q + uint64_t{args.num_q} * s.qk_dim;
  s.k = s.out + uint64_t{args.num_q} * s.v_dim;
  s.v = s.k + uint64_t{kBlockKeys} * s.qk_dim;
  s.max = s.v + uint64_t{kBlockKeys} * s.v_dim;
  s.sum = s.max + args.num_q;
  return s;
}

static void start(const AttendArgs& args, const Scratch& s) {
  const Vector scale = splat(args.scale);
  for (uint32_t h = 0; h < args.num_q; ++h) {
    float* q = s.q + h * s.qk_dim;
    widen_row(args.q + uint64_t{h} * args.qk_head_dim, args.qk_head_dim, q);
    for (uint32_t i = 0; i < s.qk_dim; i += kLanes) store(q + i, multiply(load(q + i), scale));
    for (uint32_t i = 0; i < s.v_dim; i += kLanes) store(s.out + h * s.v_dim + i, zero());
    const bool has_sink = args.sink_logit && args.sink_logit[h] > -1e30f;
    s.max[h] = has_sink ? args.sink_logit[h] : -1e30f;
    s.sum[h] = has_sink ? 1.0f : 0.0f;
  }
}

}  // namespace

uint64_t attend_scratch_floats(uint32_t num_q, uint32_t qk_head_dim, uint32_t v_head_dim) {
  const uint64_t dims = uint64_t{padded(qk_head_dim)} + padded(v_head_dim);
  return (num_q + kBlockKeys) * dims + 2 * uint64_t{num_q};
}

void attend(const AttendArgs& args) {
  const Scratch s = layout_scratch(args);
  start(args, s);
  for (uint64_t i = 0; i < kBlockKeys * uint64_t{s.qk_dim}; ++i) s.k[i] = 0.0f;
  Cursor cursor = {args.segments, args.segments + args.num_segments, 0};
  while (const uint32_t num_keys = load_block(args, s, cursor)) {
    for (uint32_t h = 0; h < args.num_q; ++h) {
      alignas(64) float scores[kBlockKeys];
      score_block(s.q + h * s.qk_dim, s, scores);
      const float factor = softmax_block(scores, num_keys, s.max[h], s.sum[h]);
      float* out = s.out + h * s.v_dim;
      uint32_t i = 0;
      for (; i + 8 * kLanes <= s.v_dim; i += 8 * kLanes)
        mix_columns<8>(s, scores, num_keys, factor, i, out);
      for (; i < s.v_dim; i += kLanes) mix_columns<1>(s, scores, num_keys, factor, i, out);
    }
  }
  for (uint32_t h = 0; h < args.num_q; ++h) {
    const Vector inverse = splat(1.0f / s.sum[h]);
    bf16_t* out = args.out + uint64_t{h} * args.v_head_dim;
    for (uint32_t i = 0; i < args.v_head_dim; i += kLanes)
      store_bf16(out + i, multiply(load(s.out + h * s.v_dim + i), inverse), args.v_head_dim - i);
  }
}

}  // namespace mimo_rt::cpu::MIMO_RT_ISA
