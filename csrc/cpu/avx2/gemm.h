// y = W x for packed weights and prepared activations: the loops that every weight format of this folder shares.
//
// Lanes. A *column* is a pair of ymm registers that holds, for one k-step, 16 (row, class) products. With one class
// (bf16, f32) a column is all 16 rows of one k; with two classes (mxfp4, fp8) it is 8 rows of k and k + 2, and the tile
// has two columns, its *units*. A lane never mixes rows, and classes are added once, at the end of the row group.
//
// Order. In every block of 32 k a lane sums its products in k-step order, from zero, with FMA; then
// acc = fma(block sum, scale, acc), blocks ascending. Both paths below execute exactly this sequence per lane, so a
// token's result does not depend on how many tokens are computed with it:
//   direct  1..4 tokens: weights are expanded in registers, next to the FMAs; limited by memory or by the expansion
//   panel   more: a tile is expanded once into L1 and multiplied with six tokens at a time; limited by the FMA units
//
// Prepared activations are FP32, in groups of tokens: [group][k-step][token][class].
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "../kernels.h"
#include "../tile_layout.h"

#define MIMO_RT_INLINE static inline __attribute__((always_inline))

namespace mimo_rt::cpu::avx2 {
namespace {

enum : uint32_t { kDirectTokens = 4, kGroupTokens = 6, kBlockTokens = 48 };

/// Tokens of the group that starts at `first`; prepare() and gemm() must agree on it.
MIMO_RT_INLINE uint32_t group_width(uint32_t num_tokens, uint32_t first) {
  if (num_tokens <= kDirectTokens) return num_tokens;
  const uint32_t rest = num_tokens - first;
  return rest < kGroupTokens ? rest : kGroupTokens;
}

/// What mxfp4 and fp8 share: 8 rows per unit, bytes of a dword lane are 4 k of one row.
struct TwoClasses {
  static constexpr uint32_t kClasses = 2, kUnits = 2, kSteps = 16;

  MIMO_RT_INLINE __m256i load_codes(const uint8_t* tile, uint32_t vector, uint32_t unit) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(tile + vector * 64 + unit * 32));
  }

  /// Low and high bytes of the bf16 weights of k..k+3 -> the k-steps (k, k+2) and (k+1, k+3).
  template <class Emit>
  MIMO_RT_INLINE void emit_bytes(__m256i low, __m256i high, uint32_t step, const Emit& emit) {
    const __m256i pair0 = _mm256_unpacklo_epi8(low, high);  // rows 0 1 | 4 5
    const __m256i pair1 = _mm256_unpackhi_epi8(low, high);  // rows 2 3 | 6 7
    const __m256i odd = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    emit(step, _mm256_castsi256_ps(_mm256_slli_epi32(pair0, 16)),
         _mm256_castsi256_ps(_mm256_slli_epi32(pair1, 16)));
    emit(step + 1, _mm256_castsi256_ps(_mm256_and_si256(pair0, odd)),
         _mm256_castsi256_ps(_mm256_and_si256(pair1, odd)));
  }

  MIMO_RT_INLINE void finish(const float* acc, uint32_t unit_stride, float* y) {
    for (uint32_t unit = 0; unit < 2; ++unit) {
      const float* a = acc + unit * unit_stride;
      _mm256_storeu_ps(y + unit * 8, _mm256_hadd_ps(_mm256_load_ps(a), _mm256_load_ps(a + 8)));
    }
  }
};

template <uint32_t kClasses>
MIMO_RT_INLINE __m256 broadcast(const float* x) {
  if constexpr (kClasses == 1) return _mm256_broadcast_ss(x);
  return _mm256_castpd_ps(_mm256_broadcast_sd(reinterpret_cast<const double*>(x)));
}

/// acc[token] = fma(part[token], scale, acc[token]) for one unit of a tile.
template <uint32_t T>
MIMO_RT_INLINE void add_scaled(const __m256 (&part)[T][2], __m256 scale0, __m256 scale1, float* acc) {
#pragma GCC unroll 8
  for (uint32_t t = 0; t < T; ++t) {
    float* a = acc + t * 16;
    _mm256_store_ps(a, _mm256_fmadd_ps(part[t][0], scale0, _mm256_load_ps(a)));
    _mm256_store_ps(a + 8, _mm256_fmadd_ps(part[t][1], scale1, _mm256_load_ps(a + 8)));
  }
}

/// B neighbouring blocks of one unit for T tokens. B > 1 only adds independent FMA chains.
/// `x` and `acc` point at the first block's activations and at the unit's accumulators.
template <class F, uint32_t T, uint32_t B>
MIMO_RT_INLINE void direct_blocks(const uint8_t* tile, uint32_t num_blocks, uint32_t unit, uint32_t block,
                                  const float* x, float* acc) {
  __m256 part[B][T][2];
#pragma GCC unroll 8
  for (uint32_t b = 0; b < B; ++b)
#pragma GCC unroll 8
    for (uint32_t t = 0; t < T; ++t) part[b][t][0] = part[b][t][1] = _mm256_setzero_ps();
#pragma GCC unroll 4
  for (uint32_t j = 0; j < F::kVectors; ++j) {
#pragma GCC unroll 4
    for (uint32_t b = 0; b < B; ++b) {
      const float* xb = x + b * layout::kBlockK * T;
      F::expand(tile, unit, block + b, j, [&](uint32_t step, __m256 w0, __m256 w1)
                                              __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (uint32_t t = 0; t < T; ++t) {
          const __m256 xt = broadcast<F::kClasses>(xb + (step * T + t) * F::kClasses);
          part[b][t][0] = _mm256_fmadd_ps(w0, xt, part[b][t][0]);
          part[b][t][1] = _mm256_fmadd_ps(w1, xt, part[b][t][1]);
        }
      });
    }
  }
#pragma GCC unroll 4
  for (uint32_t b = 0; b < B; ++b) {
    __m256 scale0, scale1;
    F::scales(tile, num_blocks, unit, block + b, scale0, scale1);
    add_scaled<T>(part[b], scale0, scale1, acc);
  }
}

template <class F, uint32_t T>
MIMO_RT_INLINE void direct_tile(const uint8_t* tile, uint32_t num_blocks, const float* x, float* acc) {
  for (uint32_t unit = 0; unit < F::kUnits; ++unit) {
    float* unit_acc = acc + unit * T * 16;
    uint32_t block = 0;
    if constexpr (T == 1) {
      for (; block + 4 <= num_blocks; block += 4)
        direct_blocks<F, T, 4>(tile, num_blocks, unit, block, x + block * layout::kBlockK * T, unit_acc);
    }
    if constexpr (T <= 2) {
      for (; block + 2 <= num_blocks; block += 2)
        direct_blocks<F, T, 2>(tile, num_blocks, unit, block, x + block * layout::kBlockK * T, unit_acc);
    }
    for (; block < num_blocks; ++block)
      direct_blocks<F, T, 1>(tile, num_blocks, unit, block, x + block * layout::kBlockK * T, unit_acc);
  }
}

template <class F, uint32_t T>
static void direct(const GemmArgs& args) {
  const uint8_t* tile = args.weights;
  const float* x = static_cast<const float*>(args.x);
  alignas(64) float acc[F::kUnits * T * 16];
  for (uint32_t group = 0; group < args.num_row_groups; ++group) {
    for (float& a : acc) a = 0.0f;
    for (uint32_t k = 0; k < args.k; k += layout::kTileK) {
      const uint32_t left = (args.k - k) / layout::kBlockK;
      const uint32_t num_blocks = left < layout::kBlocksPerTile ? left : uint32_t{layout::kBlocksPerTile};
      direct_tile<F, T>(tile, num_blocks, x + k * T, acc);
      tile += layout::tile_bytes(F::kFormat, num_blocks);
    }
    for (uint32_t t = 0; t < T; ++t)
      F::finish(acc + t * 16, T * 16, args.y + uint64_t{t} * args.y_stride + group * layout::kRows);
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
      for (uint32_t j = 0; j < F::kVectors; ++j)
        F::expand(tile, unit, block, j, [&](uint32_t step, __m256 w0, __m256 w1) __attribute__((always_inline)) {
          _mm256_store_ps(weights + step * 16, w0);
          _mm256_store_ps(weights + step * 16 + 8, w1);
        });
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
        const __m256 w0 = _mm256_load_ps(weights + step * 16), w1 = _mm256_load_ps(weights + step * 16 + 8);
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
static void panel_tile_any(uint32_t width, const Panel& panel, uint32_t num_blocks, const float* x, float* acc) {
  switch (width) {
    case 1: return panel_tile<F, 1>(panel, num_blocks, x, acc);
    case 2: return panel_tile<F, 2>(panel, num_blocks, x, acc);
    case 3: return panel_tile<F, 3>(panel, num_blocks, x, acc);
    case 4: return panel_tile<F, 4>(panel, num_blocks, x, acc);
    case 5: return panel_tile<F, 5>(panel, num_blocks, x, acc);
    default: return panel_tile<F, 6>(panel, num_blocks, x, acc);
  }
}

/// Tokens [first, last) of the call; `first` starts a group.
template <class F>
static void panel_tokens(const GemmArgs& args, uint32_t first, uint32_t last) {
  const uint8_t* tile = args.weights;
  const float* x = static_cast<const float*>(args.x) + uint64_t{first} * args.k;
  const uint32_t acc_per_token = F::kUnits * 16;
  alignas(64) float acc[kBlockTokens * F::kUnits * 16];
  Panel panel;
  for (uint32_t group = 0; group < args.num_row_groups; ++group) {
    for (uint32_t i = 0; i < (last - first) * acc_per_token; ++i) acc[i] = 0.0f;
    for (uint32_t k = 0; k < args.k; k += layout::kTileK) {
      const uint32_t left = (args.k - k) / layout::kBlockK;
      const uint32_t num_blocks = left < layout::kBlocksPerTile ? left : uint32_t{layout::kBlocksPerTile};
      expand_tile<F>(tile, num_blocks, panel);
      tile += layout::tile_bytes(F::kFormat, num_blocks);
      for (uint32_t t = first; t < last;) {
        const uint32_t width = group_width(args.num_tokens, t);
        panel_tile_any<F>(width, panel, num_blocks, x + uint64_t{t - first} * args.k + uint64_t{k} * width,
                          acc + (t - first) * acc_per_token);
        t += width;
      }
    }
    for (uint32_t t = first; t < last;) {
      const uint32_t width = group_width(args.num_tokens, t);
      for (uint32_t i = 0; i < width; ++i)
        F::finish(acc + (t - first) * acc_per_token + i * 16, width * 16,
                  args.y + uint64_t{t + i} * args.y_stride + group * layout::kRows);
      t += width;
    }
  }
}

template <class F>
static void gemm_format(const GemmArgs& args) {
  switch (args.num_tokens) {
    case 1: return direct<F, 1>(args);
    case 2: return direct<F, 2>(args);
    case 3: return direct<F, 3>(args);
    case 4: return direct<F, 4>(args);
    default: break;
  }
  for (uint32_t first = 0; first < args.num_tokens; first += kBlockTokens) {
    const uint32_t rest = args.num_tokens - first;
    panel_tokens<F>(args, first, first + (rest < kBlockTokens ? rest : uint32_t{kBlockTokens}));
  }
}

}  // namespace
}  // namespace mimo_rt::cpu::avx2
