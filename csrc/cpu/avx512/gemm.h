// y = W x for packed weights and prepared activations: the loops that every weight format of this
// folder shares.
//
// A lane is one row (fp8: one row and one half of its k). Formats other than f32 expand to pairs of
// bf16; a *step* multiplies one pair of 16 rows (fp8: two), F::kWide registers, with one broadcast
// per token. Where the processor has BF16 a step is one vdpbf16ps; where not, the pair takes two
// steps of FP32 FMA, the odd half first: the order that the instruction documents. f32 weights take
// one step per k. In every block of 32 k a lane accumulates its steps in order, from zero; then
// acc = fma(block sum, scale, acc), blocks ascending. Up to eight tokens share the expansion of the
// weights, of a format with kExpandsOnce all of a call; every width executes this same sequence per
// lane, so a token's result does not depend on the number of tokens.
//
// vdpbf16ps flushes subnormals, FMA does not: there the two may differ.
// Prepared activations: [group of up to 8 tokens][step][token][F::kClasses] words of 4 bytes, a
// word being a pair of bf16 or one FP32.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "../tile_layout.h"
#include "entries.h"
#include "prefetch.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

/// Formats with kExpandsOnce pay for a panel from kPanelTokens on: below, codes expand beside
/// the products of each group.
enum : uint32_t { kGroupTokens = 8, kPanelTokens = 16, kBlockTokens = 64 };

/// Tokens of the group that starts at `first`; prepare() and gemm() must agree on it.
MIMO_RT_INLINE uint32_t group_width(uint32_t num_tokens, uint32_t first) {
  const uint32_t rest = num_tokens - first;
  return rest < kGroupTokens ? rest : kGroupTokens;
}

/// A format's weights as they lie in memory: kVectors registers of 64 bytes per block.
struct Codes {
  static constexpr bool kIsPanel = false;
  static constexpr bool kExpandsOnce = false;
  static constexpr uint32_t kVectorBytes = 64;
};

/// What the formats that expand to pairs share. emit_pair() hands on the steps of the `pair`-th
/// registers of weights; expand() of a format calls it in ascending order.
#if defined(MIMO_RT_AVX512_BF16)
struct Pairs : Codes {
  static constexpr uint32_t kStepsPerPair = 1;

  template <class Emit, class... Words>
  MIMO_RT_INLINE void emit_pair(const Emit& emit, uint32_t pair, Words... w) {
    emit(pair, w...);
  }

  MIMO_RT_INLINE __m512 multiply_add(__m512 acc, __m512i w, __m512i x) {
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x);
  }
};
#else
struct Pairs : Codes {
  static constexpr uint32_t kStepsPerPair = 2;

  template <class Emit, class... Words>
  MIMO_RT_INLINE void emit_pair(const Emit& emit, uint32_t pair, Words... w) {
    const __m512i odd = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    emit(2 * pair, _mm512_and_si512(w, odd)...);
    emit(2 * pair + 1, _mm512_slli_epi32(w, 16)...);
  }

  MIMO_RT_INLINE __m512 multiply_add(__m512 acc, __m512i w, __m512i x) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), acc);
  }
};
#endif

/// One 4-byte word of activations, or two, in every lane group.
template <uint32_t kClasses>
MIMO_RT_INLINE __m512i broadcast(const uint32_t* x) {
  if constexpr (kClasses == 1) {
    return _mm512_set1_epi32(static_cast<int>(*x));
  } else {
    long long pair;
    __builtin_memcpy(&pair, x, sizeof(pair));
    return _mm512_set1_epi64(pair);
  }
}

/// Fetches a line ahead of the stream that starts at `codes`. Quantised weights, and where BF16 is
/// fast plain ones for two or three tokens, come into L1: the hardware's prefetchers alone reach half
/// the bandwidth, of fp8 at one token a third. Beside more tokens plain weights come into L2, for L1
/// is full of activations. At one token the hardware of Zen 4 needs no help; that of Emerald Rapids
/// alone reads two thirds of what comes with lines fetched into L2.
template <class F, uint32_t T>
MIMO_RT_INLINE void prefetch(const uint8_t*& codes, uint32_t offset) {
  constexpr bool kIsPlain = F::kFormat == layout::kBf16 || F::kFormat == layout::kF32;
  constexpr bool kIsBf16Fast = Pairs::kStepsPerPair == 1;
  if constexpr (F::kIsPanel)
    return;
  else if constexpr (kIsPlain && (T > 3 || !kIsBf16Fast))
    _mm_prefetch(reinterpret_cast<const char*>(codes + offset) + 8192, _MM_HINT_T1);
  else if constexpr (!kIsPlain || T > 1)
    prefetch_near(codes, offset);
}

/// `codes` are those of a tile, or what they expand to.
struct Tile {
  const uint8_t* codes;
  const uint8_t* scales;
  uint32_t num_blocks;
};

/// B neighbouring blocks for T tokens. B > 1 only adds independent chains. Lines are fetched ahead
/// in the order of their addresses, not of their use.
template <class F, uint32_t T, uint32_t B>
MIMO_RT_INLINE void tile_blocks(const Tile& tile, uint32_t block, const uint32_t* x, float* acc) {
  const uint8_t* codes = tile.codes + block * F::kVectors * F::kVectorBytes;
  __m512 part[B][T][F::kWide];
#pragma GCC unroll 8
  for (uint32_t b = 0; b < B; ++b)
#pragma GCC unroll 8
    for (uint32_t t = 0; t < T; ++t)
#pragma GCC unroll 2
      for (uint32_t n = 0; n < F::kWide; ++n) part[b][t][n] = _mm512_setzero_ps();
#pragma GCC unroll 4
  for (uint32_t j = 0; j < F::kVectors; ++j) {
#pragma GCC unroll 4
    for (uint32_t b = 0; b < B; ++b) {
      const uint32_t* xb = x + uint64_t{b} * F::kSteps * T * F::kClasses;
      prefetch<F, T>(codes, (j * B + b) * 64);
      const auto step_of_all = [&](uint32_t step, auto... w) __attribute__((always_inline)) {
        const __m512i weights[] = {w...};
#pragma GCC unroll 8
        for (uint32_t t = 0; t < T; ++t) {
          const __m512i xt = broadcast<F::kClasses>(xb + (step * T + t) * F::kClasses);
#pragma GCC unroll 2
          for (uint32_t n = 0; n < F::kWide; ++n)
            part[b][t][n] = F::multiply_add(part[b][t][n], weights[n], xt);
        }
      };
      F::expand(codes + (b * F::kVectors + j) * F::kVectorBytes, j, step_of_all);
    }
  }
#pragma GCC unroll 4
  for (uint32_t b = 0; b < B; ++b) {
    __m512 scale[F::kWide];
    F::scales(tile.scales, block + b, scale);
#pragma GCC unroll 8
    for (uint32_t t = 0; t < T; ++t)
#pragma GCC unroll 2
      for (uint32_t n = 0; n < F::kWide; ++n) {
        float* a = acc + (t * F::kWide + n) * 16;
        _mm512_store_ps(a, _mm512_fmadd_ps(part[b][t][n], scale[n], _mm512_load_ps(a)));
      }
  }
}

template <class F, uint32_t T>
static void tile_tokens(const Tile& tile, const uint32_t* x, float* acc) {
  constexpr uint32_t kMany = T == 1 ? F::kChains : T == 2 ? (F::kChains + 1) / 2 : 1;
  const uint32_t words_per_block = F::kSteps * T * F::kClasses;
  uint32_t block = 0;
  for (; block + kMany <= tile.num_blocks; block += kMany)
    tile_blocks<F, T, kMany>(tile, block, x + block * words_per_block, acc);
  for (; block < tile.num_blocks; ++block)
    tile_blocks<F, T, 1>(tile, block, x + block * words_per_block, acc);
}

template <class F>
MIMO_RT_INLINE void tile_any(uint32_t width, const Tile& tile, const uint32_t* x, float* acc) {
  switch (width) {
    case 1:
      return tile_tokens<F, 1>(tile, x, acc);
    case 2:
      return tile_tokens<F, 2>(tile, x, acc);
    case 3:
      return tile_tokens<F, 3>(tile, x, acc);
    case 4:
      return tile_tokens<F, 4>(tile, x, acc);
    case 5:
      return tile_tokens<F, 5>(tile, x, acc);
    case 6:
      return tile_tokens<F, 6>(tile, x, acc);
    case 7:
      return tile_tokens<F, 7>(tile, x, acc);
    default:
      return tile_tokens<F, 8>(tile, x, acc);
  }
}

/// What the codes of F expand to: written once for many tokens, read for each group of them.
template <class F>
struct Panel : F {
  static constexpr bool kIsPanel = true;
  static constexpr uint32_t kStepsPerVector = F::kSteps / F::kVectors;
  static constexpr uint32_t kVectorBytes = kStepsPerVector * F::kWide * 64;
  static constexpr uint32_t kTileBytes = layout::kBlocksPerTile * F::kVectors * kVectorBytes;

  template <class Emit>
  MIMO_RT_INLINE void expand(const uint8_t* weights, uint32_t j, const Emit& emit) {
    static_assert(F::kWide == 2);
#pragma GCC unroll 2
    for (uint32_t s = 0; s < kStepsPerVector; ++s, weights += F::kWide * 64)
      emit(j * kStepsPerVector + s, _mm512_load_si512(weights), _mm512_load_si512(weights + 64));
  }

  static void fill(const Tile& tile, uint8_t* weights) {
    const uint8_t* codes = tile.codes;
    for (uint32_t i = 0; i < tile.num_blocks; ++i, weights += kTileBytes / layout::kBlocksPerTile)
      for (uint32_t j = 0; j < F::kVectors; ++j, codes += 64) {
        prefetch_near(codes, 0);
        F::expand(codes, j, [&](uint32_t step, auto... w) __attribute__((always_inline)) {
          uint8_t* out = weights + step * F::kWide * 64;
          ((_mm512_store_si512(out, w), out += 64), ...);
        });
      }
  }
};

/// One tile, starting at `k`, for tokens [first, last). F: a format, or the panel of one.
template <class F>
static void multiply_tile(const GemmArgs& args, const Tile& tile, uint32_t k, uint32_t first,
                          uint32_t last, float* acc) {
  constexpr uint32_t kWordsPerBlock = F::kSteps * F::kClasses;
  const uint32_t* x = static_cast<const uint32_t*>(args.x);
  for (uint32_t t = first, width; t < last; t += width, acc += width * F::kWide * 16) {
    width = group_width(args.num_tokens, t);
    const uint64_t block = uint64_t{t} * (args.k / layout::kBlockK) +
                           uint64_t{width} * (k / layout::kBlockK);
    tile_any<F>(width, tile, x + block * kWordsPerBlock, acc);
  }
}

/// The same for a tile as it lies in memory.
template <class F>
static void multiply_stream(const GemmArgs& args, const Tile& tile, uint32_t k, uint32_t first,
                            uint32_t last, float* acc) {
  if constexpr (F::kExpandsOnce) {
    if (last - first >= kPanelTokens) {
      alignas(64) uint8_t panel[Panel<F>::kTileBytes];
      Panel<F>::fill(tile, panel);
      return multiply_tile<Panel<F>>(args, {panel, tile.scales, tile.num_blocks}, k, first, last,
                                     acc);
    }
  }
  multiply_tile<F>(args, tile, k, first, last, acc);
}

/// Tokens [first, last) of the call; `first` starts a group.
template <class F>
static void gemm_tokens(const GemmArgs& args, uint32_t first, uint32_t last) {
  constexpr uint32_t kAccPerToken = F::kWide * 16;
  alignas(64) float acc[kBlockTokens * kAccPerToken];
  const uint8_t* bytes = args.weights;
  for (uint32_t group = 0; group < args.num_row_groups; ++group) {
    for (uint32_t i = 0; i < (last - first) * kAccPerToken; ++i) acc[i] = 0.0f;
    for (uint32_t k = 0; k < args.k; k += layout::kTileK) {
      const uint32_t left = (args.k - k) / layout::kBlockK;
      const uint32_t num_blocks =
          left < layout::kBlocksPerTile ? left : uint32_t{layout::kBlocksPerTile};
      const Tile tile{bytes, bytes + num_blocks * layout::block_bytes(F::kFormat), num_blocks};
      multiply_stream<F>(args, tile, k, first, last, acc);
      bytes += layout::tile_bytes(F::kFormat, num_blocks);
    }
    for (uint32_t t = first; t < last; ++t)
      F::finish(acc + (t - first) * kAccPerToken,
                args.y + uint64_t{t} * args.y_stride + group * layout::kRows);
  }
}

template <class F>
static void gemm_format(const GemmArgs& args) {
  for (uint32_t first = 0; first < args.num_tokens; first += kBlockTokens) {
    const uint32_t rest = args.num_tokens - first;
    gemm_tokens<F>(args, first, first + (rest < kBlockTokens ? rest : uint32_t{kBlockTokens}));
  }
}

}  // namespace
}  // namespace mimo_rt::cpu::MIMO_RT_ISA
