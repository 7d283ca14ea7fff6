// y = W x for packed weights and prepared activations: the loops that the formats with FP32
// products share (fp8, bf16, f32).
//
// Lanes are rows: a k-step multiplies the 16 weights of one k, two registers, with one broadcast
// activation per token.
//
// Order. In every block of 32 k a lane sums its products in k order, from zero, with FMA; then
// acc = fma(block sum, scale, acc), blocks ascending. Both paths below execute exactly this
// sequence per lane, so a token's result does not depend on how many tokens are computed with it:
//   direct  weights are expanded in registers next to the FMAs of a group of tokens
//   panel   a tile is expanded once into L1 and multiplied with up to six tokens at a time: for
//           fp8 and more than a few tokens, others take no more than a load and a shift to expand
//
// Prepared activations are FP32, in groups of tokens: [group][k][token], then a factor per token.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "../tile_layout.h"
#include "entries.h"

namespace mimo_rt::cpu::avx2 {
namespace {

/// kBlockTokens bounds the accumulators and keeps the activations of a row group's pass in L2.
enum : uint32_t { kPanelGroup = 6, kBlockTokens = 48 };

MIMO_RT_INLINE constexpr bool takes_panel(int format, uint32_t num_tokens) {
  return format == layout::kFp8 && num_tokens > 8;
}

/// Largest group of the direct path: the sums of 16 rows of six tokens leave room in the registers
/// for a pair of weights, those of five for the pieces of the next fp8 weights as well.
static constexpr uint32_t direct_group(int format) { return format == layout::kFp8 ? 5 : 6; }

/// Tokens of the group that starts at `first`, groups as even as they get; prepare() and gemm()
/// must agree on it.
MIMO_RT_INLINE uint32_t group_width(int format, uint32_t num_tokens, uint32_t first) {
  const uint32_t largest =
      takes_panel(format, num_tokens) ? uint32_t{kPanelGroup} : direct_group(format);
  const uint32_t rest = num_tokens - first, num_groups = (rest + largest - 1) / largest;
  return (rest + num_groups - 1) / num_groups;
}

/// Four tiles of mxfp4 ahead: without it the hardware's prefetchers reach half the bandwidth,
/// nearer is slower.
MIMO_RT_INLINE void prefetch(const uint8_t* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p) + 4 * 1088, _MM_HINT_T0);
}

/// What is read through `codes` from here on is read again, not kept in registers. expand() does so
/// with kReloads, where the sums leave none.
MIMO_RT_INLINE void forget(const uint8_t*& codes) { asm("" : "+r"(codes)); }

/// Sums over one block: [token][half of the 16 rows].
template <uint32_t T>
using Sums = __m256[T][2];

template <uint32_t T>
MIMO_RT_INLINE void clear(Sums<T>& sums) {
#pragma GCC unroll 8
  for (uint32_t t = 0; t < T; ++t) sums[t][0] = sums[t][1] = _mm256_setzero_ps();
}

/// sum = fma(weights, x, sum). gcc keeps the sums of six tokens in registers only if the result has
/// to stay where the addend is.
MIMO_RT_INLINE void multiply_add(__m256 weights, __m256 x, __m256& sum) {
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(weights), "x"(x));
}

/// The products of one k, whose activations are at `x`.
template <uint32_t T>
MIMO_RT_INLINE void add_products(__m256 w0, __m256 w1, const float* x, Sums<T>& sums) {
#pragma GCC unroll 8
  for (uint32_t t = 0; t < T; ++t) {
    const __m256 xt = _mm256_broadcast_ss(x + t);
    multiply_add(w0, xt, sums[t][0]);
    multiply_add(w1, xt, sums[t][1]);
  }
}

/// acc[token] = fma(sums[token], scale, acc[token]).
template <uint32_t T>
MIMO_RT_INLINE void add_scaled(const Sums<T>& sums, __m256 scale0, __m256 scale1, float* acc) {
#pragma GCC unroll 8
  for (uint32_t t = 0; t < T; ++t) {
    float* a = acc + t * 16;
    asm("" : "+r"(a));  // gcc would keep acc on the stack as well, and store all of it twice
    _mm256_store_ps(a, _mm256_fmadd_ps(sums[t][0], scale0, _mm256_load_ps(a)));
    _mm256_store_ps(a + 8, _mm256_fmadd_ps(sums[t][1], scale1, _mm256_load_ps(a + 8)));
  }
}

/// B blocks side by side, next to each other in memory: a lane of one block is a chain of 32 FMAs
/// of four cycles each, and two units want eight of those. Lines are fetched ahead in the order of
/// their addresses: in the order of use, two streams, they come at half the bandwidth.
template <class F, uint32_t T, uint32_t B>
MIMO_RT_INLINE void direct_blocks(const uint8_t* codes, const float* x, __m256 scale0,
                                  __m256 scale1, float* acc) {
  constexpr uint32_t kBytes = layout::block_bytes(F::kFormat);
  constexpr uint32_t kVectorK = layout::kBlockK / F::kVectors;
  Sums<T> sums[B];
#pragma GCC unroll 4
  for (uint32_t b = 0; b < B; ++b) clear<T>(sums[b]);
#pragma GCC unroll 4
  for (uint32_t j = 0; j < F::kVectors; ++j) {
#pragma GCC unroll 4
    for (uint32_t b = 0; b < B; ++b) {
      prefetch(codes + (j * B + b) * 64);
      const float* first = x + (b * layout::kBlockK + j * kVectorK) * T;
      F::template expand<(T > 3)>(
          codes + b * kBytes + j * 64,
          [&](uint32_t k, __m256 w0, __m256 w1) __attribute__((always_inline)) {
            add_products<T>(w0, w1, first + k * T, sums[b]);
          });
    }
  }
#pragma GCC unroll 4
  for (uint32_t b = 0; b < B; ++b) add_scaled<T>(sums[b], scale0, scale1, acc);
}

template <class F, uint32_t T>
MIMO_RT_INLINE void direct_tile(const uint8_t* tile, uint32_t num_blocks, const float* x,
                                float* acc) {
  __m256 scale0, scale1;
  F::scales(tile, num_blocks, scale0, scale1);
  uint32_t block = 0;
  const auto run = [&]<uint32_t B>() __attribute__((always_inline)) {
    for (; block + B <= num_blocks; block += B)
      direct_blocks<F, T, B>(tile + block * layout::block_bytes(F::kFormat),
                             x + block * layout::kBlockK * T, scale0, scale1, acc);
  };
  if constexpr (T == 1) run.template operator()<4>();
  if constexpr (T <= 3) run.template operator()<2>();
  run.template operator()<1>();
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
    case 4:
      return direct_tile<F, 4>(tile, num_blocks, x, acc);
    case 5:
      return direct_tile<F, 5>(tile, num_blocks, x, acc);
  }
  if constexpr (direct_group(F::kFormat) == 6) direct_tile<F, 6>(tile, num_blocks, x, acc);
}

/// One expanded tile: [k][16 rows].
struct Panel {
  alignas(64) float weights[layout::kRows * layout::kTileK];
};

template <class F>
static void expand_tile(const uint8_t* tile, uint32_t num_blocks, Panel& panel) {
  float* weights = panel.weights;
  for (uint32_t block = 0; block < num_blocks; ++block)
    for (uint32_t j = 0; j < F::kVectors; ++j, tile += 64) {
      prefetch(tile);
      F::template expand<false>(
          tile, [&](uint32_t k, __m256 w0, __m256 w1) __attribute__((always_inline)) {
            _mm256_store_ps(weights + k * layout::kRows, w0);
            _mm256_store_ps(weights + k * layout::kRows + 8, w1);
          });
      weights += layout::kBlockK / F::kVectors * layout::kRows;
    }
}

template <class F, uint32_t T>
static void panel_tile(const Panel& panel, const uint8_t* tile, uint32_t num_blocks,
                       const float* x, float* acc) {
  const float* weights = panel.weights;
  __m256 scale0, scale1;
  F::scales(tile, num_blocks, scale0, scale1);
  for (uint32_t block = 0; block < num_blocks; ++block) {
    Sums<T> sums;
    clear<T>(sums);
#pragma GCC unroll 4
    for (uint32_t k = 0; k < layout::kBlockK; ++k, weights += layout::kRows, x += T)
      add_products<T>(_mm256_load_ps(weights), _mm256_load_ps(weights + 8), x, sums);
    add_scaled<T>(sums, scale0, scale1, acc);
  }
}

template <class F>
static void panel_tile_any(uint32_t width, const Panel& panel, const uint8_t* tile,
                           uint32_t num_blocks, const float* x, float* acc) {
  switch (width) {
    case 1:
      return panel_tile<F, 1>(panel, tile, num_blocks, x, acc);
    case 2:
      return panel_tile<F, 2>(panel, tile, num_blocks, x, acc);
    case 3:
      return panel_tile<F, 3>(panel, tile, num_blocks, x, acc);
    case 4:
      return panel_tile<F, 4>(panel, tile, num_blocks, x, acc);
    case 5:
      return panel_tile<F, 5>(panel, tile, num_blocks, x, acc);
    default:
      return panel_tile<F, 6>(panel, tile, num_blocks, x, acc);
  }
}

/// One tile, starting at `k`, for all tokens of a block.
template <class F>
static void multiply_tile(const GemmArgs& args, const uint8_t* tile, uint32_t k, uint32_t first,
                          uint32_t last, Panel& panel, float* acc) {
  const uint32_t left = (args.k - k) / layout::kBlockK;
  const uint32_t num_blocks =
      left < layout::kBlocksPerTile ? left : uint32_t{layout::kBlocksPerTile};
  const bool use_panel = takes_panel(F::kFormat, args.num_tokens);
  if (use_panel) expand_tile<F>(tile, num_blocks, panel);
  for (uint32_t t = first, width; t < last; t += width, acc += width * layout::kRows) {
    width = group_width(F::kFormat, args.num_tokens, t);
    const float* x = static_cast<const float*>(args.x) + uint64_t{t} * args.k + uint64_t{k} * width;
    if (use_panel)
      panel_tile_any<F>(width, panel, tile, num_blocks, x, acc);
    else
      direct_tile_any<F>(width, tile, num_blocks, x, acc);
  }
}

/// Tokens [first, last) of the call; `first` starts a group.
template <class F>
static void multiply_tokens(const GemmArgs& args, uint32_t first, uint32_t last) {
  alignas(64) float acc[kBlockTokens * uint32_t{layout::kRows}];
  Panel panel;
  const float* factors =
      static_cast<const float*>(args.x) + uint64_t{args.num_tokens} * args.k + first;
  const uint8_t* tile = args.weights;
  for (uint32_t group = 0; group < args.num_row_groups; ++group) {
    for (uint32_t i = 0; i < (last - first) * layout::kRows; ++i) acc[i] = 0.0f;
    for (uint32_t k = 0; k < args.k; k += layout::kTileK) {
      multiply_tile<F>(args, tile, k, first, last, panel, acc);
      const uint32_t left = (args.k - k) / layout::kBlockK;
      tile += layout::tile_bytes(
          F::kFormat, left < layout::kBlocksPerTile ? left : uint32_t{layout::kBlocksPerTile});
    }
    for (uint32_t t = 0; t < last - first; ++t) {
      float* y = args.y + uint64_t{first + t} * args.y_stride + group * layout::kRows;
      const float* a = acc + t * layout::kRows;
      const __m256 factor = _mm256_broadcast_ss(factors + t);
      _mm256_storeu_ps(y, _mm256_mul_ps(_mm256_load_ps(a), factor));
      _mm256_storeu_ps(y + 8, _mm256_mul_ps(_mm256_load_ps(a + 8), factor));
    }
  }
}

template <class F>
static void gemm_format(const GemmArgs& args) {
  uint32_t first = 0;
  while (first < args.num_tokens) {
    uint32_t last = first;
    while (last < args.num_tokens &&
           last + group_width(F::kFormat, args.num_tokens, last) <= first + kBlockTokens)
      last += group_width(F::kFormat, args.num_tokens, last);
    multiply_tokens<F>(args, first, last);
    first = last;
  }
}

}  // namespace
}  // namespace mimo_rt::cpu::avx2
