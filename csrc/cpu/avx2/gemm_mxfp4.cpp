// MXFP4 weights, few tokens: integer sums of weights times the digits of the activations, see
// mxfp4_units.h. A digit costs one vpmaddubsw and one addition per 32 products, where FP32 needs four
// FMAs.
//
//   direct  one token: codes are looked up next to their products
//   panel   more: a block is looked up once into L1
// Both take 16 rows at a time, for which an activation is broadcast once: on Zen 3 a block of 8
// rows takes a token 14 cycles, where 8 rows at a time took 17, and FMAs take 16.
#include <immintrin.h>

#include "entries.h"
#include "mxfp4_units.h"

namespace mimo_rt::cpu::avx2 {
namespace {

enum : uint32_t { kQuads = 8 };

/// The low three bits of a code.
alignas(32) const float kMagnitude[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};

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

/// Biased weights of k = 4j..4j+3 of a unit's rows.
MIMO_RT_INLINE __m256i look_up(const Block& block, uint32_t j, uint32_t unit) {
  return look_up(codes_of(block.tile, block.index, unit, j / 2), j % 2);
}

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

/// A block looked up: [j][unit][8 rows][4 k].
struct Panel {
  __m256i biased[kQuads][kUnits];
};

/// Prepared activations of all tokens of a call.
struct FewTokens {
  static constexpr uint32_t kBlockTokens = kMaxFewTokens;

  FewTokens(const GemmArgs& args, uint32_t, uint32_t)
      : num_tokens(args.num_tokens),
        digits(static_cast<const Digits*>(args.x)),
        rests(reinterpret_cast<const Rests*>(static_cast<const uint8_t*>(args.x) +
                                             units_bytes(args.num_tokens, args.k))) {}

  uint32_t num_tokens;
  const Digits* digits;
  const Rests* rests;
};

struct SeveralTokens : FewTokens {
  using FewTokens::FewTokens;

  void multiply(const Block& block, uint32_t k_block, float* acc) const {
    Panel panel;
#pragma GCC unroll 8
    for (uint32_t j = 0; j < kQuads; ++j)
#pragma GCC unroll 2
      for (uint32_t unit = 0; unit < kUnits; ++unit)
        panel.biased[j][unit] = look_up(block, j, unit);
    const auto weights = [&panel](uint32_t j, uint32_t unit) __attribute__((always_inline)) {
      return _mm256_load_si256(&panel.biased[j][unit]);
    };
    for (uint64_t i = uint64_t{k_block} * num_tokens, end = i + num_tokens; i < end;
         ++i, acc += layout::kRows)
      multiply_token(block, weights, digits[i], rests[i], acc);
  }
};

struct OneToken : FewTokens {
  using FewTokens::FewTokens;

  void multiply(const Block& block, uint32_t k_block, float* acc) const {
    const auto weights = [&block](uint32_t j, uint32_t unit) __attribute__((always_inline)) {
      return look_up(block, j, unit);
    };
    multiply_token(block, weights, digits[k_block], rests[k_block], acc);
  }
};

}  // namespace

void gemm_mxfp4(const GemmArgs& args) {
  if (are_many(args.num_tokens)) return gemm_mxfp4_many(args);
  if (args.num_tokens > 1) return multiply_tokens<SeveralTokens>(args, 0, args.num_tokens);
  multiply_tokens<OneToken>(args, 0, 1);
}

}  // namespace mimo_rt::cpu::avx2
