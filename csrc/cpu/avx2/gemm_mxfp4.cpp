// MXFP4 weights: integer sums of weights times the digits of the activations, see digits.h.
//
// A row sums a block of 32 k exactly, for each digit. Then, blocks ascending,
//   acc = fma((256 high + low) half_unit, scale, acc)         the first factor is exact
//   acc = fma(extra half_unit + sum of w rest, scale, acc)    for the blocks that have an Extra
// The sequence of a token does not depend on the others. Weights are looked up once per block for
// all tokens, those of a single one next to their products. A digit then costs one vpmaddubsw and
// one addition per 32 products, where FP32 needs four FMAs: Zen 4 takes 14 cycles for both digits
// of 8 rows x 32 k and one token, FMA at least 16.
#include <immintrin.h>

#include "digits.h"
#include "entries.h"

namespace mimo_rt::cpu::avx2 {
namespace {

enum : uint32_t { kUnits = 2, kUnitRows = 8, kVectors = 4, kBlockTokens = 64 };

/// The low three bits of a code.
alignas(32) const float kMagnitude[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};

/// A block of 8 rows: dword lanes are rows, the bytes of vector j are k = 4j..4j+3.
struct Weights {
  __m256i biased[2 * kVectors];
};

MIMO_RT_INLINE const __m256i* codes_of(const uint8_t* tile, uint32_t block, uint32_t unit,
                                       uint32_t j) {
  return reinterpret_cast<const __m256i*>(tile + (block * kVectors + j) * 64 + unit * 32);
}

/// The weights of one nibble of each byte of codes.
MIMO_RT_INLINE __m256i look_up(__m256i codes, uint32_t nibble) {
  const __m256i table = _mm256_load_si256(reinterpret_cast<const __m256i*>(kBiasedWeights));
  const __m256i shifted = nibble ? _mm256_srli_epi16(codes, 4) : codes;
  return _mm256_shuffle_epi8(table, _mm256_and_si256(shifted, _mm256_set1_epi8(15)));
}

MIMO_RT_INLINE Weights look_up_block(const uint8_t* tile, uint32_t block, uint32_t unit) {
  Weights weights;
#pragma GCC unroll 4
  for (uint32_t j = 0; j < kVectors; ++j) {
    const __m256i codes = _mm256_load_si256(codes_of(tile, block, unit, j));
    weights.biased[2 * j] = look_up(codes, 0);
    weights.biased[2 * j + 1] = look_up(codes, 1);
  }
  return weights;
}

/// sums += products of weights with four digits: per row two 16-bit sums.
MIMO_RT_INLINE void add_products(__m256i weights, const int8_t* digits, __m256i& sums) {
  int32_t four;
  __builtin_memcpy(&four, digits, sizeof(four));
  sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(weights, _mm256_set1_epi32(four)));
  asm("" : "+x"(sums));  // gcc would turn the chain into a tree and spill the weights for it
}

MIMO_RT_INLINE __m256 scale_of(const uint8_t* tile, uint32_t num_blocks, uint32_t block,
                               uint32_t unit) {
  const uint8_t* e8m0 =
      tile + num_blocks * layout::block_bytes(layout::kMxfp4) + block * 16 + unit * 8;
  const __m256i exponent =
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(e8m0)));
  // Byte 0 means 2^-127, the subnormal 0x00400000.
  return _mm256_castsi256_ps(
      _mm256_max_epi32(_mm256_slli_epi32(exponent, 23), _mm256_set1_epi32(0x00400000)));
}

MIMO_RT_INLINE void add_scaled(__m256 sum, __m256 scale, float* acc) {
  _mm256_store_ps(acc, _mm256_fmadd_ps(sum, scale, _mm256_load_ps(acc)));
}

/// Sum of w * x, but for what an Extra holds, from the sums of both digits.
MIMO_RT_INLINE __m256 digits_sum(__m256i high, __m256i low, const Digits& x) {
  // |256 high + low| < 2^24: exact in FP32 as well.
  const __m256i units = _mm256_add_epi32(_mm256_madd_epi16(high, _mm256_set1_epi16(256)),
                                         _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
  return _mm256_mul_ps(_mm256_cvtepi32_ps(units), _mm256_set1_ps(x.half_unit));
}

MIMO_RT_INLINE __m256 multiply_digits(const Weights& weights, const Digits& x) {
  __m256i high = _mm256_set1_epi32(x.starts[0]), low = _mm256_set1_epi32(x.starts[1]);
#pragma GCC unroll 8
  for (uint32_t j = 0; j < 2 * kVectors; ++j) {
    add_products(weights.biased[j], x.high + 4 * j, high);
    add_products(weights.biased[j], x.low + 4 * j, low);
  }
  return digits_sum(high, low, x);
}

/// Sum of w * rest over the block, in k order.
static __m256 multiply_rest(const uint8_t* tile, uint32_t block, uint32_t unit, const Extra& x) {
  const __m256 magnitudes = _mm256_load_ps(kMagnitude);
  __m256 sum = _mm256_setzero_ps();
  for (uint32_t mask = x.rest_mask; mask; mask &= mask - 1) {
    const auto k = static_cast<uint32_t>(__builtin_ctz(mask));
    // The code of k is nibble 2 (k % 4) + k / 4 % 2 of a row's word.
    const auto bit = static_cast<int>(k % 4 * 8 + k / 4 % 2 * 4);
    const __m256i code = _mm256_srl_epi32(_mm256_load_si256(codes_of(tile, block, unit, k / 8)),
                                          _mm_cvtsi32_si128(bit));
    const __m256 sign = _mm256_and_ps(_mm256_castsi256_ps(_mm256_slli_epi32(code, 28)),
                                      _mm256_set1_ps(-0.0f));
    const __m256 weight = _mm256_xor_ps(_mm256_permutevar8x32_ps(magnitudes, code), sign);
    sum = _mm256_fmadd_ps(weight, _mm256_broadcast_ss(x.rest + k), sum);
  }
  return sum;
}

/// What an Extra adds, from the sums of its digit.
MIMO_RT_INLINE __m256 extra_sum(__m256i sums, const uint8_t* tile, uint32_t block, uint32_t unit,
                                const Extra& x) {
  const __m256 rest = x.rest_mask ? multiply_rest(tile, block, unit, x) : _mm256_setzero_ps();
  const __m256i units = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(units), _mm256_set1_ps(x.half_unit), rest);
}

static __m256 multiply_extra(const uint8_t* tile, uint32_t block, uint32_t unit,
                             const Weights& weights, const Extra& x) {
  __m256i sums = _mm256_set1_epi32(x.start);
#pragma GCC unroll 8
  for (uint32_t j = 0; j < 2 * kVectors; ++j)
    add_products(weights.biased[j], x.digit + 4 * j, sums);
  return extra_sum(sums, tile, block, unit, x);
}

/// The activations of tokens [first, last) for one block.
struct BlockTokens {
  const Digits* digits;  ///< of token `first`
  const Extra* extras;   ///< those of any token
  uint32_t num_extras, first, last;
};

/// One token: weights are looked up next to their products with all its digits. Without an Extra,
/// `extra` is not read.
template <bool kHasExtra>
MIMO_RT_INLINE void multiply_one(const uint8_t* tile, uint32_t num_blocks, uint32_t block,
                                 const Digits& x, const Extra& extra, float* acc) {
  __m256i high[kUnits], low[kUnits], third[kUnits];
#pragma GCC unroll 2
  for (uint32_t unit = 0; unit < kUnits; ++unit) {
    high[unit] = _mm256_set1_epi32(x.starts[0]);
    low[unit] = _mm256_set1_epi32(x.starts[1]);
    third[unit] = _mm256_set1_epi32(kHasExtra ? extra.start : 0);
  }
#pragma GCC unroll 1  // more at once would take too many registers
  for (uint32_t j = 0; j < 2 * kVectors; j += 2)
#pragma GCC unroll 2
    for (uint32_t nibble = 0; nibble < 2; ++nibble)
#pragma GCC unroll 2
      for (uint32_t unit = 0; unit < kUnits; ++unit) {
        const __m256i weights =
            look_up(_mm256_load_si256(codes_of(tile, block, unit, j / 2)), nibble);
        const uint32_t k = 4 * (j + nibble);
        add_products(weights, x.high + k, high[unit]);
        add_products(weights, x.low + k, low[unit]);
        if constexpr (kHasExtra) add_products(weights, extra.digit + k, third[unit]);
      }
#pragma GCC unroll 2
  for (uint32_t unit = 0; unit < kUnits; ++unit, acc += kUnitRows) {
    const __m256 scale = scale_of(tile, num_blocks, block, unit);
    add_scaled(digits_sum(high[unit], low[unit], x), scale, acc);
    if constexpr (kHasExtra)
      add_scaled(extra_sum(third[unit], tile, block, unit, extra), scale, acc);
  }
}

/// Several tokens share the look-up of a unit.
static void multiply_several(const uint8_t* tile, uint32_t num_blocks, uint32_t block,
                             const BlockTokens& x, float* acc) {
#pragma GCC unroll 2
  for (uint32_t unit = 0; unit < kUnits; ++unit, acc += kUnitRows) {
    const Weights weights = look_up_block(tile, block, unit);
    const __m256 scale = scale_of(tile, num_blocks, block, unit);
    for (uint32_t t = 0; t < x.last - x.first; ++t)
      add_scaled(multiply_digits(weights, x.digits[t]), scale, acc + t * layout::kRows);
    for (uint32_t i = 0; i < x.num_extras; ++i) {
      const Extra& extra = x.extras[i];
      if (extra.token - x.first >= x.last - x.first) continue;
      add_scaled(multiply_extra(tile, block, unit, weights, extra), scale,
                 acc + (extra.token - x.first) * layout::kRows);
    }
  }
}

template <bool kIsOnlyOne>
MIMO_RT_INLINE void multiply_block(const uint8_t* tile, uint32_t num_blocks, uint32_t block,
                                   const BlockTokens& x, float* acc) {
  if constexpr (!kIsOnlyOne)
    multiply_several(tile, num_blocks, block, x, acc);
  else if (x.num_extras)
    multiply_one<true>(tile, num_blocks, block, *x.digits, *x.extras, acc);
  else
    multiply_one<false>(tile, num_blocks, block, *x.digits, *x.extras, acc);
}

/// Four tiles ahead: the hardware's prefetchers alone reach half the bandwidth.
MIMO_RT_INLINE void prefetch_block(const uint8_t* tile, uint32_t block) {
#pragma GCC unroll 4
  for (uint32_t j = 0; j < kVectors; ++j)
    _mm_prefetch(reinterpret_cast<const char*>(codes_of(tile, block, 0, j)) + 4 * 1088,
                 _MM_HINT_T0);
}

template <bool kIsOnlyOne>
static void multiply_tokens(const GemmArgs& args, uint32_t first, uint32_t last) {
  alignas(64) float acc[uint32_t{kBlockTokens} * layout::kRows];
  const DigitsLayout parts(args.num_tokens, args.k);
  const auto* x = static_cast<const uint8_t*>(args.x);
  const auto* num_extras = reinterpret_cast<const uint32_t*>(x);
  const uint8_t* tile = args.weights;
  for (uint32_t group = 0; group < args.num_row_groups; ++group) {
    for (uint32_t i = 0; i < (last - first) * layout::kRows; ++i) acc[i] = 0.0f;
    for (uint32_t k_block = 0; k_block < args.k / layout::kBlockK;) {
      const uint32_t left = args.k / layout::kBlockK - k_block;
      const uint32_t num_blocks =
          left < layout::kBlocksPerTile ? left : uint32_t{layout::kBlocksPerTile};
      for (uint32_t block = 0; block < num_blocks; ++block, ++k_block) {
        const uint64_t row = uint64_t{k_block} * args.num_tokens;
        prefetch_block(tile, block);
        multiply_block<kIsOnlyOne>(tile, num_blocks, block,
                                   {reinterpret_cast<const Digits*>(x + parts.digits) + row + first,
                                    reinterpret_cast<const Extra*>(x + parts.extras) + row,
                                    num_extras[k_block], first, last},
                                   acc);
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
