// y = W x for packed weights in portable C++: the loops that every weight format of this folder
// shares.
//
// Blocks of 32 k of a row group are expanded to FP32, [k][row], and multiplied with every token. A
// row sums the products of a block in k order, from zero; then acc += block sum * scale, blocks
// ascending. The sequence does not depend on the number of tokens. Built without contraction to
// FMA.
#pragma once

#include <stdint.h>

#include "../kernels.h"
#include "../tile_layout.h"

namespace mimo_rt::cpu::generic {
namespace {

enum : uint32_t { kBlockTokens = 16 };

static inline float bits_to_f32(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

static inline uint32_t load_u32(const uint8_t* bytes) {
  uint32_t value;
  __builtin_memcpy(&value, bytes, sizeof(value));
  return value;
}

static inline float load_f32(const uint8_t* bytes) { return bits_to_f32(load_u32(bytes)); }

/// One block for one token: a row per lane, so that compilers vectorise it.
static inline void add_block(const float* weights, const float* scale, const float* x, float* acc) {
  float part[layout::kRows] = {};
  for (uint32_t k = 0; k < layout::kBlockK; ++k)
    for (uint32_t row = 0; row < layout::kRows; ++row)
      part[row] += weights[k * layout::kRows + row] * x[k];
  for (uint32_t row = 0; row < layout::kRows; ++row) acc[row] += part[row] * scale[row];
}

/// Tokens [first, last) of the call.
template <class F>
static void gemm_tokens(const GemmArgs& args, uint32_t first, uint32_t last) {
  const float* x = static_cast<const float*>(args.x);
  const uint8_t* tile = args.weights;
  float weights[layout::kBlockK * layout::kRows], scale[layout::kRows];
  for (uint32_t group = 0; group < args.num_row_groups; ++group) {
    float acc[kBlockTokens][layout::kRows] = {};
    for (uint32_t k = 0; k < args.k; k += layout::kTileK) {
      const uint32_t left = (args.k - k) / layout::kBlockK;
      const uint32_t num_blocks =
          left < layout::kBlocksPerTile ? left : uint32_t{layout::kBlocksPerTile};
      for (uint32_t block = 0; block < num_blocks; ++block) {
        F::expand(tile + block * layout::block_bytes(F::kFormat), weights);
        F::scales(tile + num_blocks * layout::block_bytes(F::kFormat), block, scale);
        for (uint32_t t = first; t < last; ++t)
          add_block(weights, scale, x + uint64_t{t} * args.k + k + block * layout::kBlockK,
                    acc[t - first]);
      }
      tile += layout::tile_bytes(F::kFormat, num_blocks);
    }
    for (uint32_t t = first; t < last; ++t)
      for (uint32_t row = 0; row < layout::kRows; ++row)
        args.y[uint64_t{t} * args.y_stride + group * layout::kRows + row] = acc[t - first][row];
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
}  // namespace mimo_rt::cpu::generic
