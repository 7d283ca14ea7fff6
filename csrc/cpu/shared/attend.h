// Attention over one kv head: online softmax over blocks of 64 keys.
//
// Blocks are counted from the first visible key and cross segment boundaries, so pages and rings
// never change a bit. Per head (m: running maximum, l: running denominator, o: running output):
//   s_j = scale (q . k_j)          m' = max(m, max_j s_j)         p_j = e^(s_j - m')
//   l = l e^(m - m') + sum_j p_j   o = o e^(m - m') + sum_j p_j v_j
// A sink starts as m = sink, l = 1. Two heads share a key's loads; what one head does with a key
// does not depend on the other. Rows are handled as Bf16Pairs: multiplied as such where the processor
// can, else as FP32, even and odd elements apart, which bf16 yields with one operation each.
//
// The includer has included the simd.h of its ISA.
#pragma once

#include "entries.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

enum : uint32_t { kBlockKeys = 64, kPairLanes = 2 * kLanes };

/// Independent sums of a tile: two FMA units with a latency of four cycles are busy, and AVX2's
/// sixteen registers hold them beside their factors. simd.h says how many keys two heads score at
/// once (kPairKeys): where registers allow, as many as one head does.
enum : uint32_t { kTileSums = 8 };

MIMO_RT_INLINE uint32_t padded(uint32_t dim) {
  return (dim + kPairLanes - 1) / kPairLanes * kPairLanes;
}

/// Floats that a row of q takes.
MIMO_RT_INLINE uint32_t query_floats(uint32_t dim) { return padded(dim) / kPairLanes * kQueryFloats; }

/// A head is one q head of one token. Rows of out: per kPairLanes elements the even ones, then the
/// odd ones. Padding to a multiple of kPairLanes elements is zero.
struct Scratch {
  uint32_t num_heads;
  uint32_t q_floats, v_dim;  ///< of a row
  float* scores;           ///< [num_heads, kBlockKeys]
  float* q;                ///< [num_heads, q_floats], see store_query
  float* out;              ///< [num_heads, v_dim]
  float* max;              ///< [num_heads]
  float* sum;              ///< [num_heads]
  float* factor;           ///< [num_heads] for what was accumulated before the block
};

/// Where the next key comes from.
struct Cursor {
  const KvSegment* segment;
  const KvSegment* end;
  uint32_t key;
};

/// Keys and values of a block. Keys up to a whole tile repeat the last one.
struct Block {
  uint32_t num_keys;
  const bf16_t* k[kBlockKeys];
  const bf16_t* v[kBlockKeys];
};

/// False: no key is left.
static bool next_block(const AttendArgs& args, Cursor& cursor, Block& block) {
  uint32_t n = 0;
  while (n < kBlockKeys && cursor.segment != cursor.end) {
    if (cursor.key == cursor.segment->num_keys) {
      ++cursor.segment;
      cursor.key = 0;
      continue;
    }
    const uint64_t key = cursor.key++;
    block.k[n] = cursor.segment->k + key * args.qk_head_dim;
    block.v[n] = cursor.segment->v + key * args.v_head_dim;
    ++n;
  }
  block.num_keys = n;
  for (; n % kTileSums; ++n) block.k[n] = block.k[n - 1];
  return n != 0;
}

/// sums[h][n] += q_h . k_n over `count` (1 .. kPairLanes) elements from `i`.
template <uint32_t H, uint32_t N>
MIMO_RT_INLINE void add_scores(const Scratch& s, const float* q, const bf16_t* const* k, uint32_t i,
                               uint32_t count, Vector (&sums)[H][N]) {
#pragma GCC unroll 8
  for (uint32_t n = 0; n < N; ++n) {
    const Bf16Pairs key = load_pairs(k[n] + i, count);
#pragma GCC unroll 2
    for (uint32_t h = 0; h < H; ++h)
      sums[h][n] = add_products(key, q + h * s.q_floats + i / kPairLanes * kQueryFloats, sums[h][n]);
  }
}

/// scores[h][n] = q_h . k_n, for H heads and N keys, without the scale.
template <uint32_t H, uint32_t N>
MIMO_RT_INLINE void score_tile(const AttendArgs& args, const Scratch& s, const float* q,
                               const bf16_t* const* k, float* scores) {
  Vector sums[H][N];
#pragma GCC unroll 2
  for (uint32_t h = 0; h < H; ++h)
#pragma GCC unroll 8
    for (uint32_t n = 0; n < N; ++n) sums[h][n] = zero();
  uint32_t i = 0;
  for (; i + kPairLanes <= args.qk_head_dim; i += kPairLanes)
    add_scores<H, N>(s, q, k, i, kPairLanes, sums);
  if (i < args.qk_head_dim) add_scores<H, N>(s, q, k, i, args.qk_head_dim - i, sums);
#pragma GCC unroll 2
  for (uint32_t h = 0; h < H; ++h) store_sums(sums[h], scores + h * kBlockKeys);
}

/// Rows [first, first + kTileSums) of those in use, into the second cache.
MIMO_RT_INLINE void prefetch_rows(const bf16_t* const* rows, uint32_t num_rows, uint32_t first,
                                  uint32_t dim) {
  for (uint32_t n = first; n < first + kTileSums && n < num_rows; ++n)
    for (uint32_t i = 0; i < dim; i += 64 / sizeof(bf16_t)) __builtin_prefetch(rows[n] + i, 0, 2);
}

/// All heads see a few keys after the other, while the values of those and keys of the next block
/// are on their way from memory.
static void score_block(const AttendArgs& args, const Scratch& s, const Block& block,
                        const Block& next) {
  for (uint32_t j = 0; j < block.num_keys; j += kTileSums) {
    prefetch_rows(block.v, block.num_keys, j, args.v_head_dim);
    prefetch_rows(next.k, next.num_keys, j, args.qk_head_dim);
    const bf16_t* const* k = block.k + j;
    for (uint32_t h = 0; h < s.num_heads; h += 2) {
      const float* q = s.q + h * s.q_floats;
      float* scores = s.scores + h * kBlockKeys + j;
      if (h + 1 == s.num_heads) score_tile<1, kTileSums>(args, s, q, k, scores);
      else
        for (uint32_t n = 0; n < kTileSums; n += kPairKeys)
          score_tile<2, kPairKeys>(args, s, q, k + n, scores + n);
    }
  }
}

/// Products become scores and then probabilities; returns the factor for what was accumulated before.
MIMO_RT_INLINE float softmax(float* scores, uint32_t num_keys, float scale, float& max, float& sum) {
  Vector largest = splat(max);
  for (uint32_t j = 0; j < num_keys; j += kLanes) {
    const Vector x = first_lanes_or(multiply(load(scores + j), splat(scale)), num_keys - j, splat(-3.4e38f));
    store(scores + j, x);
    largest = maximum(x, largest);
  }
  const float new_max = max_lanes(largest);
  Vector total = zero();
  for (uint32_t j = 0; j < num_keys; j += kLanes) {
    const Vector p = exp_negative(subtract(load(scores + j), splat(new_max)));
    store(scores + j, p);
    total = add(total, p);
  }
  const float factor = first_lane(exp_negative(splat(max - new_max)));
  sum = __builtin_fmaf(sum, factor, sum_lanes(total));
  max = new_max;
  return factor;
}

/// out = out * factor + sum_j p_j v_j for H heads and P pairs of vectors of the head dimension; the
/// last pair has `count` elements.
template <uint32_t H, uint32_t P>
MIMO_RT_INLINE void mix_tile(const Scratch& s, const Block& block, uint32_t num_keys, uint32_t head,
                             uint32_t dim, uint32_t count) {
  float* out = s.out + head * s.v_dim + dim;
  const float* p = s.scores + head * kBlockKeys;
  Vector acc[H][2 * P];
#pragma GCC unroll 2
  for (uint32_t h = 0; h < H; ++h)
#pragma GCC unroll 8
    for (uint32_t c = 0; c < 2 * P; ++c)
      acc[h][c] = multiply(load(out + h * s.v_dim + c * kLanes), splat(s.factor[head + h]));
  for (uint32_t j = 0; j < num_keys; ++j) {
#pragma GCC unroll 4
    for (uint32_t c = 0; c < P; ++c) {
      const Bf16Pairs value = load_pairs(block.v[j] + dim + c * kPairLanes,
                                         c + 1 < P ? uint32_t{kPairLanes} : count);
#pragma GCC unroll 2
      for (uint32_t h = 0; h < H; ++h) {
        const Vector weight = splat_at(p + h * kBlockKeys + j);
        acc[h][2 * c] = multiply_add(even(value), weight, acc[h][2 * c]);
        acc[h][2 * c + 1] = multiply_add(odd(value), weight, acc[h][2 * c + 1]);
      }
    }
  }
#pragma GCC unroll 2
  for (uint32_t h = 0; h < H; ++h)
#pragma GCC unroll 8
    for (uint32_t c = 0; c < 2 * P; ++c) store(out + h * s.v_dim + c * kLanes, acc[h][c]);
}

template <uint32_t H>
static void mix_heads(const AttendArgs& args, const Scratch& s, const Block& block,
                      uint32_t num_keys, uint32_t head) {
  constexpr uint32_t kPairs = kTileSums / 2 / H;
  uint32_t dim = 0;
  for (; dim + kPairs * kPairLanes <= args.v_head_dim; dim += kPairs * kPairLanes)
    mix_tile<H, kPairs>(s, block, num_keys, head, dim, kPairLanes);
  for (; dim + kPairLanes <= args.v_head_dim; dim += kPairLanes)
    mix_tile<H, 1>(s, block, num_keys, head, dim, kPairLanes);
  if (dim < args.v_head_dim)
    mix_tile<H, 1>(s, block, num_keys, head, dim, args.v_head_dim - dim);
}

/// `first`: the number of the block's first key.
static void attend_block(const AttendArgs& args, const Scratch& s, const Block& block,
                         const Block& next, uint32_t first) {
  const auto num_visible = [&](uint32_t head) {
    const uint32_t end = args.rows[head / args.num_q].num_keys;
    const uint32_t left = end > first ? end - first : 0;
    return left < block.num_keys ? left : block.num_keys;
  };
  score_block(args, s, block, next);
  // One after the other: the latencies of a head's softmax overlap those of the next.
  for (uint32_t h = 0; h < s.num_heads; ++h)
    if (const uint32_t num_keys = num_visible(h))
      s.factor[h] = softmax(s.scores + h * kBlockKeys, num_keys, args.scale, s.max[h], s.sum[h]);
  for (uint32_t h = 0; h < s.num_heads;) {
    const uint32_t num_keys = num_visible(h);
    const bool is_pair = h + 1 < s.num_heads && num_visible(h + 1) == num_keys;
    if (num_keys && is_pair) mix_heads<2>(args, s, block, num_keys, h);
    else if (num_keys) mix_heads<1>(args, s, block, num_keys, h);
    h += is_pair ? 2 : 1;
  }
}

static Scratch layout_scratch(const AttendArgs& args) {
  Scratch s;
  s.num_heads = args.num_rows * args.num_q;
  s.q_floats = query_floats(args.qk_head_dim);
  s.v_dim = padded(args.v_head_dim);
  s.scores = args.scratch;
  s.q = s.scores + uint64_t{s.num_heads} * kBlockKeys;
  s.out = s.q + uint64_t{s.num_heads} * s.q_floats;
  s.max = s.out + uint64_t{s.num_heads} * s.v_dim;
  s.sum = s.max + s.num_heads;
  s.factor = s.sum + s.num_heads;
  return s;
}

static void start(const AttendArgs& args, const Scratch& s) {
  for (uint32_t h = 0; h < s.num_heads; ++h) {
    const uint32_t q_head = h % args.num_q;
    const bf16_t* row = args.rows[h / args.num_q].q + uint64_t{q_head} * args.qk_head_dim;
    float* q = s.q + h * s.q_floats;
    for (uint32_t i = 0; i < args.qk_head_dim; i += kPairLanes, q += kQueryFloats)
      store_query(q, load_pairs(row + i, args.qk_head_dim - i));
    for (uint32_t i = 0; i < s.v_dim; i += kLanes) store(s.out + h * s.v_dim + i, zero());
    const bool has_sink = args.sink_logit && args.sink_logit[q_head] > -1e30f;
    s.max[h] = has_sink ? args.sink_logit[q_head] : -1e30f;
    s.sum[h] = has_sink ? 1.0f : 0.0f;
  }
}

static void finish(const AttendArgs& args, const Scratch& s) {
  for (uint32_t h = 0; h < s.num_heads; ++h) {
    const Vector inverse = splat(1.0f / s.sum[h]);
    const float* x = s.out + h * s.v_dim;
    bf16_t* out = args.rows[h / args.num_q].out + uint64_t{h % args.num_q} * args.v_head_dim;
    for (uint32_t i = 0; i < args.v_head_dim; i += kPairLanes)
      store_pairs(out + i, multiply(load(x + i), inverse), multiply(load(x + i + kLanes), inverse),
                  args.v_head_dim - i);
  }
}

}  // namespace

uint64_t attend_scratch_floats(uint32_t num_heads, uint32_t qk_head_dim, uint32_t v_head_dim) {
  return num_heads * (uint64_t{query_floats(qk_head_dim)} + padded(v_head_dim) + kBlockKeys + 3);
}

void attend(const AttendArgs& args) {
  const Scratch s = layout_scratch(args);
  start(args, s);
  Block blocks[2];
  Cursor cursor = {args.segments, args.segments + args.num_segments, 0};
  uint32_t i = 0, first = 0;
  for (bool has_next = next_block(args, cursor, blocks[0]); has_next; i ^= 1) {
    has_next = next_block(args, cursor, blocks[i ^ 1]);
    attend_block(args, s, blocks[i], blocks[i ^ 1], first);
    first += blocks[i].num_keys;
  }
  finish(args, s);
}

}  // namespace mimo_rt::cpu::MIMO_RT_ISA
