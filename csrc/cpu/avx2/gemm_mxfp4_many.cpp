// MXFP4 weights, many tokens: integer sums of weights times the units of the activations, see
// mxfp4_units.h. A block's weights are widened once into L1; vpmaddwd multiplies pairs of k.
//
// On Zen 3 a block of 16 rows takes a token 24 cycles, of which the 32 vpmaddwd and 32 additions
// alone take 20; FMAs take 32. Four tokens share the loads of weights: two vectors per cycle.
#include "entries.h"
#include "mxfp4_units.h"

namespace mimo_rt::cpu::avx2 {
namespace {

enum : uint32_t { kPairs = 16, kGroup = 4 };

/// w of the 16 codes, once for every 16 bytes of a register.
alignas(32) const int8_t kWeights[32] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12,
                                         0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/// A block widened: [pair of k][unit][8 rows][2 k], pairs as in Units.
struct Panel {
  __m256i pairs[kPairs][kUnits];
};

/// Codes of eight k of the rows of a unit: k = 8j + b is the low half of byte b of a row's word, k =
/// 8j + 4 + b the high one.
MIMO_RT_INLINE void widen(const Block& block, uint32_t j, uint32_t unit, Panel& panel) {
  const __m256i table = _mm256_load_si256(reinterpret_cast<const __m256i*>(kWeights));
  const __m256i nibble = _mm256_set1_epi8(15), even = _mm256_set1_epi16(1);
  const __m256i codes = load_bytes(codes_of(block.tile, block.index, unit, j));
  const __m256i first = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, nibble));
  const __m256i second =
      _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
  panel.pairs[4 * j][unit] = _mm256_maddubs_epi16(even, first);
  panel.pairs[4 * j + 1][unit] = _mm256_maddubs_epi16(even, second);
  panel.pairs[4 * j + 2][unit] = _mm256_srai_epi16(first, 8);
  panel.pairs[4 * j + 3][unit] = _mm256_srai_epi16(second, 8);
}

/// Tokens of one block of k.
struct BlockTokens {
  const Units* units;
  const Rests* rests;
};

/// acc += scale * sum of w * units of the next T tokens.
template <uint32_t T>
static void add_units(const Block& block, const Panel& panel, const Units* x, float* acc) {
  __m256i sums[T][kUnits];
#pragma GCC unroll 4
  for (uint32_t t = 0; t < T; ++t) sums[t][0] = sums[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 16
  for (uint32_t pair = 0; pair < kPairs; ++pair) {
    __m256i w0 = _mm256_load_si256(&panel.pairs[pair][0]);
    __m256i w1 = _mm256_load_si256(&panel.pairs[pair][1]);
    asm("" : "+x"(w0), "+x"(w1));  // gcc would load them again for every token
#pragma GCC unroll 4
    for (uint32_t t = 0; t < T; ++t) {
      int32_t two;
      __builtin_memcpy(&two, x[t].values + 2 * pair, sizeof(two));
      const __m256i xt = _mm256_set1_epi32(two);
      sums[t][0] = _mm256_add_epi32(sums[t][0], _mm256_madd_epi16(w0, xt));
      sums[t][1] = _mm256_add_epi32(sums[t][1], _mm256_madd_epi16(w1, xt));
      asm("" : "+x"(sums[t][0]), "+x"(sums[t][1]));  // gcc would turn the chains into trees
    }
  }
#pragma GCC unroll 4
  for (uint32_t t = 0; t < T; ++t)
#pragma GCC unroll 2
    for (uint32_t unit = 0; unit < kUnits; ++unit)  // below 2^24: exact in FP32
      add_scaled(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[t][unit]), _mm256_set1_ps(x[t].half_unit)),
                 block.scale[unit], acc + t * layout::kRows + unit * kUnitRows);
}

static void add_units_any(uint32_t num_tokens, const Block& block, const Panel& panel,
                          const Units* x, float* acc) {
  switch (num_tokens) {
    case 1:
      return add_units<1>(block, panel, x, acc);
    case 2:
      return add_units<2>(block, panel, x, acc);
    case 3:
      return add_units<3>(block, panel, x, acc);
    default:
      return add_units<4>(block, panel, x, acc);
  }
}

/// Where in a Panel a k is: looked up, for two uops less than computed, and a broadcast from memory.
struct Place {
  int32_t select;  ///< times a pair: the weight of k
  uint32_t pair;
};
struct Places {
  constexpr Places() {
    for (uint32_t k = 0; k < layout::kBlockK; ++k)
      of[k] = {k & 2 ? 1 << 16 : 1, k / 8 * 4 + k % 2 * 2 + k / 4 % 2};
  }
  Place of[layout::kBlockK] = {};
};
alignas(64) constexpr Places kPlaces;

/// sums += twice the weights of k times its rest.
MIMO_RT_INLINE void add_rest(const Panel& panel, uint32_t k, const Rests& rests,
                             __m256 (&sums)[kUnits]) {
  const Place& place = kPlaces.of[k];
  const __m256i select = _mm256_set1_epi32(place.select);
  const __m256 rest = _mm256_broadcast_ss(rests.values + k);
#pragma GCC unroll 2
  for (uint32_t unit = 0; unit < kUnits; ++unit) {
    const __m256i w = _mm256_madd_epi16(select, _mm256_load_si256(&panel.pairs[place.pair][unit]));
    sums[unit] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(w), rest, sums[unit]);
  }
}

/// acc += scale * sum of w * rest in k order, for `tokens` with `kCount` rests; 0: any number.
template <uint32_t kCount>
MIMO_RT_INLINE void add_rests(uint64_t tokens, const Panel& panel, const __m256 (&half_scale)[kUnits],
                              const Units* x, const Rests* rests, float* acc) {
  for (; tokens; tokens &= tokens - 1) {
    const auto t = static_cast<uint32_t>(__builtin_ctzll(tokens));
    __m256 sums[kUnits] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    uint32_t mask = x[t].rest_mask;
#pragma GCC unroll 4
    for (uint32_t i = 0; kCount ? i < kCount : mask != 0; ++i, mask &= mask - 1)
      add_rest(panel, static_cast<uint32_t>(__builtin_ctz(mask)), rests[t], sums);
#pragma GCC unroll 2
    for (uint32_t unit = 0; unit < kUnits; ++unit)
      add_scaled(sums[unit], half_scale[unit], acc + t * layout::kRows + unit * kUnitRows);
  }
}

/// Prepared activations of tokens [first, last) of a call, `first` a multiple of kListTokens.
struct ManyTokens {
  static constexpr uint32_t kBlockTokens = kListTokens;

  ManyTokens(const GemmArgs& args, uint32_t first, uint32_t last)
      : num_tokens(last - first), stride(args.num_tokens) {
    const auto* bytes = static_cast<const uint8_t*>(args.x);
    units = reinterpret_cast<const Units*>(bytes) + first;
    bytes += units_bytes(stride, args.k);
    rests = reinterpret_cast<const Rests*>(bytes) + first;
    bytes += rests_bytes(stride, args.k);
    lists = reinterpret_cast<const RestTokens*>(bytes) +
            uint64_t{first / kListTokens} * (args.k / layout::kBlockK);
  }

  void multiply(const Block& block, uint32_t k_block, float* acc) const {
    Panel panel;
#pragma GCC unroll 4
    for (uint32_t j = 0; j < kVectors; ++j)
#pragma GCC unroll 2
      for (uint32_t unit = 0; unit < kUnits; ++unit) widen(block, j, unit, panel);
    const Units* x = units + uint64_t{k_block} * stride;
    for (uint32_t t = 0; t < num_tokens; t += kGroup)
      add_units_any(num_tokens - t, block, panel, x + t, acc + t * layout::kRows);

    const __m256 half = _mm256_set1_ps(0.5f);
    const __m256 half_scale[] = {_mm256_mul_ps(block.scale[0], half),
                                 _mm256_mul_ps(block.scale[1], half)};
    const RestTokens& list = lists[k_block];
    const Rests* r = rests + uint64_t{k_block} * stride;
    add_rests<1>(list.with[0], panel, half_scale, x, r, acc);
    add_rests<2>(list.with[1], panel, half_scale, x, r, acc);
    add_rests<3>(list.with[2], panel, half_scale, x, r, acc);
    add_rests<4>(list.with[3], panel, half_scale, x, r, acc);
    add_rests<0>(list.with[4], panel, half_scale, x, r, acc);
  }

  uint32_t num_tokens, stride;
  const Units* units;
  const Rests* rests;
  const RestTokens* lists;
};

}  // namespace

void gemm_mxfp4_many(const GemmArgs& args) {
  for (uint32_t first = 0; first < args.num_tokens; first += kListTokens) {
    const uint32_t left = args.num_tokens - first;
    multiply_tokens<ManyTokens>(args, first,
                                first + (left < kListTokens ? left : uint32_t{kListTokens}));
  }
}

}  // namespace mimo_rt::cpu::avx2
