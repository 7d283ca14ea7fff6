// MXFP4 weights: integer sums of weights times the digits of the activations, see digits.h.
//
// A row sums a block of 32 k exactly, for each digit. Then, blocks ascending,
//   acc = fma((256 high + low) half_unit, scale, acc)   the first factor is exact
//   acc = fma(sum of w rest, scale, acc)                where there are rests
// The sequence of a token does not depend on the others. A digit costs one vpmaddubsw and one
// addition per 32 products, where FP32 needs four FMAs.
//
//   direct  one token: codes are looked up next to their products
//   panel   more: a block is looked up once into L1
// Both take 16 rows at a time, for which an activation is broadcast once: on Zen 3 a block of 8
// rows takes a token 14 cycles, where 8 rows at a time took 17, and FMAs take 16.
#include <immintrin.h>

#include "digits.h"
#include "entries.h"
#include "mxfp4.h"

namespace mimo_rt::cpu::avx2 {
namespace {

enum : uint32_t { kUnits = 2, kUnitRows = 8, kVectors = 4, kQuads = 8, kBlockTokens = 64 };

/// The low three bits of a code.
alignas(32) const float kMagnitude[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};

MIMO_RT_INLINE const uint8_t* codes_of(const uint8_t* tile, uint32_t block, uint32_t unit,
                                       uint32_t j) {
  return tile + (block * kVectors + j) * 64 + unit * 32;
}

MIMO_RT_INLINE void add_scaled(__m256 sum, __m256 scale, float* acc) {
  _mm256_store_ps(acc, _mm256_fmadd_ps(sum, scale, _mm256_load_ps(acc)));
}

/// Sum of w * x without the rests, from the sums of both digits.
MIMO_RT_INLINE __m256 digits_sum(__m256i high, __m256i low, const Digits& x) {
  // |256 high + low| < 2^24: exact in FP32 as well.
  const __m256i units = _mm256_add_epi32(_mm256_madd_epi16(high, _mm256_set1_epi16(256)),
                                         _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
  return _mm256_mul_ps(_mm256_cvtepi32_ps(units), _mm256_set1_ps(x.half_unit));
}

/// The weights of one k, rows of a unit.
MIMO_RT_INLINE __m256 weights_of(const uint8_t* tile, uint32_t block, uint32_t unit, uint32_t k) {
  // The code of k is nibble 2 (k % 4) + k / 4 % 2 of a row's word.
  const auto bit = static_cast<int>(k % 4 * 8 + k / 4 % 2 * 4);
  const __m256i code = _mm256_srl_epi32(load_bytes(codes_of(tile, block, unit, k / 8)),
                                        _mm_cvtsi32_si128(bit));
  const __m256 sign = _mm256_and_ps(_mm256_castsi256_ps(_mm256_slli_epi32(code, 28)),
                                    _mm256_set1_ps(-0.0f));
  return _mm256_xor_ps(_mm256_permutevar8x32_ps(_mm256_load_ps(kMagnitude), code), sign);
}

/// A block of 16 rows, as all its tokens meet it.
struct Block {
  Block(const uint8_t* from, uint32_t num_blocks, uint32_t i) : tile(from), index(i) {
    const uint8_t* e8m0 =
        tile + num_blocks * layout::block_bytes(layout::kMxfp4) + i * layout::kRows;
    scale[0] = scales(e8m0);
    scale[1] = scales(e8m0 + kUnitRows);
  }

  /// Biased weights of a unit, k = 4j..4j+3.
  __m256i look_up(uint32_t j, uint32_t unit) const {
    return avx2::look_up(codes_of(tile, index, unit, j / 2), j % 2);
  }

  const uint8_t* tile;
  uint32_t index;
  __m256 scale[kUnits];
};

/// acc += scale * sum of w * rest, in k order.
MIMO_RT_INLINE void add_rests(const Block& block, uint32_t mask, const Rests& rests, float* acc) {
  __m256 sums[kUnits] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (; mask; mask &= mask - 1) {
    const auto k = static_cast<uint32_t>(__builtin_ctz(mask));
    const __m256 rest = _mm256_broadcast_ss(rests.values + k);
#pragma GCC unroll 2
    for (uint32_t unit = 0; unit < kUnits; ++unit)
      sums[unit] =
          _mm256_fmadd_ps(weights_of(block.tile, block.index, unit, k), rest, sums[unit]);
  }
#pragma GCC unroll 2
  for (uint32_t unit = 0; unit < kUnits; ++unit)
    add_scaled(sums[unit], block.scale[unit], acc + unit * kUnitRows);
}

/// One token. `weights(j, unit)` are biased: dword lanes are rows, bytes k = 4j..4j+3.
template <class GetWeights>
MIMO_RT_INLINE void multiply_token(const Block& block, const GetWeights& weights, const Digits& x,
                                   const Rests& rests, float* acc) {
  __m256i high[kUnits], low[kUnits];
  high[0] = high[1] = _mm256_set1_epi32(x.starts[0]);
  low[0] = low[1] = _mm256_set1_epi32(x.starts[1]);
#pragma GCC unroll 8
  for (uint32_t j = 0; j < kQuads; ++j)
#pragma GCC unroll 2
    for (uint32_t unit = 0; unit < kUnits; ++unit) {
      const __m256i w = weights(j, unit);
      add_products(w, broadcast(x.high + 4 * j), high[unit]);
      add_products(w, broadcast(x.low + 4 * j), low[unit]);
    }
#pragma GCC unroll 2
  for (uint32_t unit = 0; unit < kUnits; ++unit)
    add_scaled(digits_sum(high[unit], low[unit], x), block.scale[unit], acc + unit * kUnitRows);
  if (x.rest_mask) add_rests(block, x.rest_mask, rests, acc);
}

/// Activations of a block's tokens.
struct BlockTokens {
  const Digits* digits;
  const Rests* rests;
  uint32_t num_tokens;
};

/// A block looked up: [j][unit][8 rows][4 k].
struct Panel {
  __m256i biased[kQuads][kUnits];
};

static void multiply_several(const Block& block, const BlockTokens& x, float* acc) {
  Panel panel;
#pragma GCC unroll 8
  for (uint32_t j = 0; j < kQuads; ++j)
#pragma GCC unroll 2
    for (uint32_t unit = 0; unit < kUnits; ++unit)
      panel.biased[j][unit] = block.look_up(j, unit);
  const auto weights = [&panel](uint32_t j, uint32_t unit) __attribute__((always_inline)) {
    return _mm256_load_si256(&panel.biased[j][unit]);
  };
  for (uint32_t t = 0; t < x.num_tokens; ++t, acc += layout::kRows)
    multiply_token(block, weights, x.digits[t], x.rests[t], acc);
}

static void multiply_one(const Block& block, const BlockTokens& x, float* acc) {
  const auto weights = [&block](uint32_t j, uint32_t unit) __attribute__((always_inline)) {
    return block.look_up(j, unit);
  };
  multiply_token(block, weights, *x.digits, *x.rests, acc);
}

MIMO_RT_INLINE void prefetch_block(const uint8_t* tile, uint32_t block) {
#pragma GCC unroll 4
  for (uint32_t j = 0; j < kVectors; ++j) prefetch(codes_of(tile, block, 0, j));
}

template <bool kIsOnlyOne>
static void multiply_tokens(const GemmArgs& args, uint32_t first, uint32_t last) {
  alignas(64) float acc[uint32_t{kBlockTokens} * layout::kRows];
  const auto* digits = static_cast<const Digits*>(args.x) + first;
  const auto* rests = reinterpret_cast<const Rests*>(static_cast<const uint8_t*>(args.x) +
                                                     digits_bytes(args.num_tokens, args.k)) +
                      first;
  const uint8_t* tile = args.weights;
  for (uint32_t group = 0; group < args.num_row_groups; ++group) {
    for (uint32_t i = 0; i < (last - first) * layout::kRows; ++i) acc[i] = 0.0f;
    for (uint32_t k_block = 0; k_block < args.k / layout::kBlockK;) {
      const uint32_t left = args.k / layout::kBlockK - k_block;
      const uint32_t num_blocks =
          left < layout::kBlocksPerTile ? left : uint32_t{layout::kBlocksPerTile};
      for (uint32_t i = 0; i < num_blocks; ++i, ++k_block) {
        const uint64_t row = uint64_t{k_block} * args.num_tokens;
        const Block block(tile, num_blocks, i);
        const BlockTokens x = {digits + row, rests + row, last - first};
        prefetch_block(tile, i);
        if constexpr (kIsOnlyOne)
          multiply_one(block, x, acc);
        else
          multiply_several(block, x, acc);
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

void gemm_mxfp4(const GemmArgs& args) {
  if (args.num_tokens == 1) return multiply_tokens<true>(args, 0, 1);
  for (uint32_t first = 0; first < args.num_tokens; first += kBlockTokens) {
    const uint32_t rest = args.num_tokens - first;
    multiply_tokens<false>(args, first,
                           first + (rest < kBlockTokens ? rest : uint32_t{kBlockTokens}));
  }
}

}  // namespace mimo_rt::cpu::avx2
