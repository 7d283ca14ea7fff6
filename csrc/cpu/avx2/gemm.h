// y = W x for packed weights and prepared activations: the loops that every weight format of this
// folder shares.
//
// Lanes. A *column* is a pair of ymm registers that holds, for one k-step, 16 (row, class)
// products. With one class (bf16, f32) a column is all 16 rows of one k; with two classes (mxfp4,
// fp8) it is 8 rows of k and k + 2, and the tile has two columns, its *units*. A lane never mixes
// rows, and classes are added once, at the end of the row group.
//
// Order. In every block of 32 k a lane sums its products in k-step order, from zero, with FMA; then
// acc = fma(block sum, scale, acc), blocks ascending. Both paths below execute exactly this
// sequence per lane, so a token's result does not depend on how many tokens are computed with it:
//   direct  a few tokens: weights are expanded in registers next to the FMAs of up to four tokens
//   panel   more: a tile is expanded once into L1 and multiplied with up to six tokens at a time
//
// Prepared activations are FP32, in groups of tokens: [group][k-step][token][class].
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "../tile_layout.h"
#include "entries.h"

namespace mimo_rt::cpu::avx2 {
namespace {

/// Up to kMaxDirect tokens take the direct path in groups of up to 4, more the panel path in groups
/// of up to 6. kBlockTokens bounds the accumulators and keeps the activations of a row group's pass
/// in L2.
enum : uint32_t { kMaxDirect = 8, kDirectGroup = 4, kPanelGroup = 6, kBlockTokens = 48 };

/// Tokens of the group that starts at `first`, groups as even as they get; prepare() and gemm()
/// must agree on it.
MIMO_RT_INLINE uint32_t group_width(uint32_t num_tokens, uint32_t first) {
  const uint32_t largest = num_tokens <= kMaxDirect ? kDirectGroup : kPanelGroup;
  const uint32_t rest = num_tokens - first, num_groups = (rest + largest - 1) / largest;
  return (rest + num_groups - 1) / num_groups;
}

/// Four tiles of mxfp4 ahead: without it the hardware's prefetchers reach half the bandwidth,
/// nearer is slower.
MIMO_RT_INLINE void prefetch(const uint8_t* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p) + 4 * 1088, _MM_HINT_T0);
}

template <uint32_t kClasses>
MIMO_RT_INLINE __m256 broadcast(const float* x) {
  if constexpr (kClasses == 1) return _mm256_broadcast_ss(x);
  return _mm256_castpd_ps(_mm256_broadcast_sd(reinterpret_cast<const double*>(x)));
}

/// acc[token] = fma(part[token], scale, acc[token]) for one unit of a tile.
template <uint32_t T>
MIMO_RT_INLINE void add_scaled(const __m256 (&part)[T][2], __m256 scale0, __m256 scale1,
                               float* acc) {
#pragma GCC unroll 8
  for (uint32_t t = 0; t < T; ++t) {
    float* a = acc + t * 16;
    _mm256_store_ps(a, _mm256_fmadd_ps(part[t][0], scale0, _mm256_load_ps(a)));
    _mm256_store_ps(a + 8, _mm256_fmadd_ps(part[t][1], scale1, _mm256_load_ps(a + 8)));
  }
}

/// U units of B neighbouring blocks for T tokens. U and B only add independent FMA chains.
/// `x` and `acc` point at the first block's activations and at the first unit's accumulators.
template <class F, uint32_t T, uint32_t U, uint32_t B>
MIMO_RT_INLINE void direct_blocks(const uint8_t* tile, uint32_t num_blocks, uint32_t first_unit,
                                  uint32_t block, const float* x, float* acc) {
  __m256 part[B][U][T][2];
#pragma GCC unroll 4
  for (uint32_t b = 0; b < B; ++b)
#pragma GCC unroll 2
    for (uint32_t u = 0; u < U; ++u)
#pragma GCC unroll 4
      for (uint32_t t = 0; t < T; ++t) part[b][u][t][0] = part[b][u][t][1] = _mm256_setzero_ps();
#pragma GCC unroll 4
  for (uint32_t j = 0; j < F::kVectors; ++j) {
#pragma GCC unroll 4
    for (uint32_t b = 0; b < B; ++b) {
      const float* xb = x + b * layout::kBlockK * T;
      // One line per line read; units after the first find theirs in L1.
      if (first_unit == 0) prefetch(tile + ((block + b) * F::kVectors + j) * 64);
#pragma GCC unroll 2
      for (uint32_t u = 0; u < U; ++u)
        F::expand(
            tile, first_unit + u, block + b,
            j, [&](uint32_t step, __m256 w0, __m256 w1) __attribute__((always_inline)) {
#pragma GCC unroll 4
              for (uint32_t t = 0; t < T; ++t) {
                const __m256 xt = broadcast<F::kClasses>(xb + (step * T + t) * F::kClasses);
                part[b][u][t][0] = _mm256_fmadd_ps(w0, xt, part[b][u][t][0]);
                part[b][u][t][1] = _mm256_fmadd_ps(w1, xt, part[b][u][t][1]);
              }
            });
    }
  }
#pragma GCC unroll 4
  for (uint32_t b = 0; b < B; ++b)
#pragma GCC unroll 2
    for (uint32_t u = 0; u < U; ++u) {
      __m256 scale0, scale1;
      F::scales(tile, num_blocks, first_unit + u, block + b, scale0, scale1);
      add_scaled<T>(part[b][u], scale0, scale1, acc + u * T * 16);
    }
}

template <class F, uint32_t T>
MIMO_RT_INLINE void direct_tile(const uint8_t* tile, uint32_t num_blocks, const float* x,
                                float* acc) {
  // Eight accumulators hide the latency of the FMA; both units first, so that lines are read in
  // order.
  constexpr uint32_t kTogether = F::kUnits == 2 && T <= 2 ? 2 : 1;
  constexpr uint32_t kBlocks = T == 1 ? F::kUnits : 1;
  for (uint32_t unit = 0; unit < F::kUnits; unit += kTogether) {
    float* unit_acc = acc + unit * T * 16;
    uint32_t block = 0;
    for (; block + kBlocks <= num_blocks; block += kBlocks)
      direct_blocks<F, T, kTogether, kBlocks>(tile, num_blocks, unit, block,
                                              x + block * layout::kBlockK * T, unit_acc);
    for (; block < num_blocks; ++block)
      direct_blocks<F, T, kTogether, 1>(tile, num_blocks, unit, block,
                                        x + block * layout::kBlockK * T, unit_acc);
  }
}

template <class F>
static void direct_tile_any(uint32_t width, const uint8_t* tile, uint32_t num_blocks,
                            const float* x, float* acc) {
  switch (width) {
    case 1:
      return direct_tile<F, 1>(tile, num_blocks, x, acc);
    case 2:
      return direct_tile<F, 2>(tile, num_blocks, x, acc);
    case 3:
      return direct_tile<F, 3>(tile, num_blocks, x, acc);
    default:
      return direct_tile<F, 4>(tile, num_blocks, x, acc);
  }
}

/// One expanded tile: [unit][block][k-step][16 lanes] and its scales [unit][block][16 lanes].
struct Panel {
  alignas(64) float weights[layout::kRows * layout::kTileK];
  alignas(64) float scales[2 * layout::kBlocksPerTile * 16];
};

template <class F>
static void expand_tile(const uint8_t* tile, uint32_t num_blocks, Panel& panel) {
  float* scales = panel.scales;
  float* weights = panel.weights;
  for (uint32_t unit = 0; unit < F::kUnits; ++unit) {
    for (uint32_t block = 0; block < num_blocks; ++block, scales += 16) {
      __m256 scale0, scale1;
      F::scales(tile, num_blocks, unit, block, scale0, scale1);
      _mm256_store_ps(scales, scale0);
      _mm256_store_ps(scales + 8, scale1);
      for (uint32_t j = 0; j < F::kVectors; ++j) {
        if (unit == 0) prefetch(tile + (block * F::kVectors + j) * 64);
        F::expand(
            tile, unit, block,
            j, [&](uint32_t step, __m256 w0, __m256 w1) __attribute__((always_inline)) {
              _mm256_store_ps(weights + step * 16, w0);
              _mm256_store_ps(weights + step * 16 + 8, w1);
            });
      }
      weights += F::kSteps * 16;
    }
  }
}

template <class F, uint32_t T>
static void panel_tile(const Panel& panel, uint32_t num_blocks, const float* x, float* acc) {
  const float* weights = panel.weights;
  const float* scales = panel.scales;
  for (uint32_t unit = 0; unit < F::kUnits; ++unit) {
    const float* xb = x;
    for (uint32_t block = 0; block < num_blocks; ++block, scales += 16) {
      __m256 part[T][2];
#pragma GCC unroll 8
      for (uint32_t t = 0; t < T; ++t) part[t][0] = part[t][1] = _mm256_setzero_ps();
#pragma GCC unroll 4
      for (uint32_t step = 0; step < F::kSteps; ++step) {
        const __m256 w0 = _mm256_load_ps(weights + step * 16),
                     w1 = _mm256_load_ps(weights + step * 16 + 8);
#pragma GCC unroll 8
        for (uint32_t t = 0; t < T; ++t) {
          const __m256 xt = broadcast<F::kClasses>(xb + (step * T + t) * F::kClasses);
          part[t][0] = _mm256_fmadd_ps(w0, xt, part[t][0]);
          part[t][1] = _mm256_fmadd_ps(w1, xt, part[t][1]);
        }
      }
      add_scaled<T>(part, _mm256_load_ps(scales), _mm256_load_ps(scales + 8), acc + unit * T * 16);
      weights += F::kSteps * 16;
      xb += layout::kBlockK * T;
    }
  }
}

template <class F>
static void panel_tile_any(uint32_t width, const Panel& panel, uint32_t num_blocks, const float* x,
                           float* acc) {
  switch (width) {
    case 1:
      return panel_tile<F, 1>(panel, num_blocks, x, acc);
    case 2:
      return panel_tile<F, 2>(panel, num_blocks, x, acc);
    case 3:
      return panel_tile<F, 3>(panel, num_blocks, x, acc);
    case 4:
      return panel_tile<F, 4>(panel, num_blocks, x, acc);
    case 5:
      return panel_tile<F, 5>(panel, num_blocks, x, acc);
    default:
      return panel_tile<F, 6>(panel, num_blocks, x, acc);
  }
}

/// One tile, starting at `k`, for all tokens of a block.
template <class F>
static void multiply_tile(const GemmArgs& args, const uint8_t* tile, uint32_t k, uint32_t first,
                          uint32_t last, Panel& panel, float* acc) {
  const uint32_t left = (args.k - k) / layout::kBlockK;
  const uint32_t num_blocks =
      left < layout::kBlocksPerTile ? left : uint32_t{layout::kBlocksPerTile};
  const bool use_panel = args.num_tokens > kMaxDirect;
  if (use_panel) expand_tile<F>(tile, num_blocks, panel);
  for (uint32_t t = first, width; t < last; t += width, acc += width * F::kUnits * 16) {
    width = group_width(args.num_tokens, t);
    const float* x = static_cast<const float*>(args.x) + uint64_t{t} * args.k + uint64_t{k} * width;
    if (use_panel)
      panel_tile_any<F>(width, panel, num_blocks, x, acc);
    else
      direct_tile_any<F>(width, tile, num_blocks, x, acc);
  }
}

/// Tokens [first, last) of the call; `first` starts a group.
template <class F>
static void multiply_tokens(const GemmArgs& args, uint32_t first, uint32_t last) {
  constexpr uint32_t kAccPerToken = F::kUnits * 16;
  alignas(64) float acc[kBlockTokens * kAccPerToken];
  Panel panel;
  const uint8_t* tile = args.weights;
  for (uint32_t group = 0; group < args.num_row_groups; ++group) {
    for (uint32_t i = 0; i < (last - first) * kAccPerToken; ++i) acc[i] = 0.0f;
    for (uint32_t k = 0; k < args.k; k += layout::kTileK) {
      multiply_tile<F>(args, tile, k, first, last, panel, acc);
      const uint32_t left = (args.k - k) / layout::kBlockK;
      tile += layout::tile_bytes(
          F::kFormat, left < layout::kBlocksPerTile ? left : uint32_t{layout::kBlocksPerTile});
    }
    for (uint32_t t = first, width; t < last; t += width) {
      width = group_width(args.num_tokens, t);
      for (uint32_t i = 0; i < width; ++i)
        F::finish(acc + (t - first) * kAccPerToken + i * 16, width * 16,
                  args.y + uint64_t{t + i} * args.y_stride + group * layout::kRows);
    }
  }
}

template <class F>
static void gemm_format(const GemmArgs& args) {
  uint32_t first = 0;
  while (first < args.num_tokens) {
    uint32_t last = first;
    while (last < args.num_tokens &&
           last + group_width(args.num_tokens, last) <= first + kBlockTokens)
      last += group_width(args.num_tokens, last);
    multiply_tokens<F>(args, first, last);
    first = last;
  }
}

}  // namespace
}  // namespace mimo_rt::cpu::avx2
