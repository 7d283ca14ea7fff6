// MXFP4 products as sums of small integers: what their activations are prepared as, and what the
// kernels for few and for many tokens share.
//
// A weight is w / 2 times its scale, with an integer |w| <= 12. A block of 32 activations of a
// token is x = units unit + rest: unit is a power of two, the units are integers of 16 bits. The
// sum over a block of w times units is exact in integers; only adding the sums up rounds, where 32
// FMAs round 32 times. This is no quantisation: every bit of every activation takes part.
//
// Units hold the 16 bits below the block's largest activation. What they leave of an activation is
// multiplied on its own: of one in 130 of a normal distribution, of one in 20 behind a gated MLP,
// of infinities and NaN. A row sums, blocks ascending,
//   acc = fma(sum of w units * half_unit, scale, acc)   the first factor is exact
//   acc = fma(sum of w rest / 2, scale, acc)            where there are rests, summed in k order
// Units are multiplied in one of two forms, with the same bits:
//   few tokens   as digits, units = 256 high + low, by vpmaddubsw: weights are bytes, as looked up
//   many tokens  as they are, by vpmaddwd: weights are widened once for all tokens
//
// Prepared activations: [block][token] Digits or Units, then [block][token] Rests, then for many
// tokens [kListTokens tokens][block] RestTokens.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "entries.h"
#include "mxfp4.h"

namespace mimo_rt::cpu::avx2 {
namespace {

enum : uint32_t { kUnits = 2, kUnitRows = 8, kVectors = 4 };  ///< of a block of 16 rows

struct Digits {
  int8_t high[layout::kBlockK];
  int8_t low[layout::kBlockK];
  Start starts[2];  ///< of high, of low
  float half_unit;
  uint32_t rest_mask;  ///< bit k: activation k has a rest
};

/// Eight k have their even ones first: 0 2 4 6 1 3 5 7, as Panel has the weights of many tokens.
struct Units {
  int16_t values[layout::kBlockK];
  float half_unit;
  uint32_t rest_mask;
};

/// Element k is zero where bit k of rest_mask is; nothing is written where all bits are.
struct Rests {
  float values[layout::kBlockK];
};

/// Tokens by the number of their rests in a block: a loop over those of one number predicts its
/// branches, one over all tokens misses one in two behind a gated MLP.
enum : uint32_t { kListTokens = 64, kMaxListedRests = 4 };
struct RestTokens {
  uint64_t with[kMaxListedRests + 1];  ///< bit t: token t has 1, 2, 3, 4, or more rests
};

/// For these, widening weights costs more than it saves.
enum : uint32_t { kMaxFewTokens = 8 };
MIMO_RT_INLINE bool are_many(uint32_t num_tokens) { return num_tokens > kMaxFewTokens; }

MIMO_RT_INLINE uint64_t units_bytes(uint32_t num_tokens, uint32_t k) {
  return uint64_t{k / layout::kBlockK} * num_tokens *
         (are_many(num_tokens) ? sizeof(Units) : sizeof(Digits));
}

MIMO_RT_INLINE uint64_t rests_bytes(uint32_t num_tokens, uint32_t k) {
  return uint64_t{k / layout::kBlockK} * num_tokens * sizeof(Rests);
}

MIMO_RT_INLINE uint64_t lists_bytes(uint32_t num_tokens, uint32_t k) {
  if (!are_many(num_tokens)) return 0;
  return uint64_t{k / layout::kBlockK} * ((num_tokens + kListTokens - 1) / kListTokens) *
         sizeof(RestTokens);
}

MIMO_RT_INLINE const uint8_t* codes_of(const uint8_t* tile, uint32_t block, uint32_t unit,
                                       uint32_t j) {
  return tile + (block * kVectors + j) * 64 + unit * 32;
}

MIMO_RT_INLINE __m256 scale_of(const uint8_t* tile, uint32_t num_blocks, uint32_t block,
                               uint32_t unit) {
  return scales(tile + num_blocks * layout::block_bytes(layout::kMxfp4) + block * 16 + unit * 8);
}

/// A block of 16 rows, as all its tokens meet it.
struct Block {
  Block(const uint8_t* from, uint32_t num_blocks, uint32_t i) : tile(from), index(i) {
    scale[0] = scale_of(tile, num_blocks, i, 0);
    scale[1] = scale_of(tile, num_blocks, i, 1);
  }

  const uint8_t* tile;
  uint32_t index;
  __m256 scale[kUnits];
};

MIMO_RT_INLINE void add_scaled(__m256 sum, __m256 scale, float* acc) {
  _mm256_store_ps(acc, _mm256_fmadd_ps(sum, scale, _mm256_load_ps(acc)));
}

/// The hardware's prefetchers alone reach half the bandwidth.
MIMO_RT_INLINE void prefetch_block(const uint8_t* tile, uint32_t block) {
#pragma GCC unroll 4
  for (uint32_t j = 0; j < kVectors; ++j) prefetch(codes_of(tile, block, 0, j));
}

/// Rows of all of k times tokens [first, last) of a call, at most F::kBlockTokens. An F knows their
/// prepared activations; multiply(block, k_block, acc) adds a block's products to acc, [token][16
/// rows].
template <class F>
static void multiply_tokens(const GemmArgs& args, uint32_t first, uint32_t last) {
  alignas(64) float acc[uint32_t{F::kBlockTokens} * layout::kRows];
  const F tokens(args, first, last);
  const uint8_t* tile = args.weights;
  for (uint32_t group = 0; group < args.num_row_groups; ++group) {
    for (uint32_t i = 0; i < (last - first) * layout::kRows; ++i) acc[i] = 0.0f;
    for (uint32_t k_block = 0; k_block < args.k / layout::kBlockK;) {
      const uint32_t left = args.k / layout::kBlockK - k_block;
      const uint32_t num_blocks =
          left < layout::kBlocksPerTile ? left : uint32_t{layout::kBlocksPerTile};
      for (uint32_t i = 0; i < num_blocks; ++i, ++k_block) {
        const Block block(tile, num_blocks, i);  // before the prefetch: one token gains 1.5 %
        prefetch_block(tile, i);
        tokens.multiply(block, k_block, acc);
      }
      tile += layout::tile_bytes(layout::kMxfp4, num_blocks);
    }
    for (uint32_t t = first; t < last; ++t) {
      float* y = args.y + uint64_t{t} * args.y_stride + group * layout::kRows;
      const float* a = acc + (t - first) * layout::kRows;
      _mm256_storeu_ps(y, _mm256_load_ps(a));
      _mm256_storeu_ps(y + 8, _mm256_load_ps(a + 8));
    }
  }
}

}  // namespace

void gemm_mxfp4_many(const GemmArgs& args);  ///< are_many(args.num_tokens)

}  // namespace mimo_rt::cpu::avx2
