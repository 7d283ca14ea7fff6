// MXFP4 weights times INT8 activations, see ../shared/int8_block.h.
//
// A dword lane is one row; its four bytes are four k. vpmaddubsw multiplies biased weights (0..24,
// unsigned) by activations (-127..127, signed) and adds two neighbours: at most 2 * 24 * 127 =
// 6,096, so its saturation never acts. Eight such sums of 16 bits make a block of 32 k. They may
// wrap around; from their start on the total is that of the weights without bias, 16 * 12 * 127 =
// 24,384 at most, which 16 bits hold: what wraps on the way wraps back. One vpmaddwd then adds the
// two sums of a row.
//
//   direct  up to six tokens: codes are looked up next to their products
//   panel   more: a block is looked up once into L1 and multiplied with up to six tokens at a time
#include "entries.h"
#include "mxfp4.h"

#include "../shared/int8_quantise.h"

namespace mimo_rt::cpu::avx2 {
namespace {

/// kBlockTokens bounds the accumulators and keeps a tile's activations in L1.
enum : uint32_t { kMaxDirect = 6, kPanelGroup = 6, kBlockTokens = 48, kLines = 4 };

template <bool kIsUnrolled, class Body>
MIMO_RT_INLINE void for_each_line(const Body& body) {
  if constexpr (kIsUnrolled) {
#pragma GCC unroll 4
    for (uint32_t line = 0; line < kLines; ++line) body(line);
  } else {  // looking codes up for several lines at once would take too many registers
#pragma GCC unroll 1
    for (uint32_t line = 0; line < kLines; ++line) body(line);
  }
}

/// One block for T tokens, acc: [T][16 rows]. `weights(line, half, unit)` gives the weights of
/// 4 k of rows 0..7 or 8..15, as look_up() does.
template <uint32_t T, bool kIsUnrolled, class Weights>
MIMO_RT_INLINE void multiply_block(const Weights& weights, __m256 scale0, __m256 scale1,
                                   const Int8Block* x, float* acc) {
  __m256i sum[T][2];
#pragma GCC unroll 8
  for (uint32_t t = 0; t < T; ++t) sum[t][0] = sum[t][1] = _mm256_set1_epi32(x[t].start);
  for_each_line<kIsUnrolled>([&](uint32_t line) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (uint32_t half = 0; half < 2; ++half) {
      const __m256i w0 = weights(line, half, 0), w1 = weights(line, half, 1);
#pragma GCC unroll 8
      for (uint32_t t = 0; t < T; ++t) {
        const __m256i q = broadcast(x[t].q + line * 8 + half * 4);
        add_products(w0, q, sum[t][0]);
        add_products(w1, q, sum[t][1]);
      }
    }
  });
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (uint32_t t = 0; t < T; ++t) {
    const __m256 scale = _mm256_set1_ps(x[t].half_scale);
    const __m256 s0 = _mm256_cvtepi32_ps(_mm256_madd_epi16(sum[t][0], ones));
    const __m256 s1 = _mm256_cvtepi32_ps(_mm256_madd_epi16(sum[t][1], ones));
    float* a = acc + t * layout::kRows;
    _mm256_store_ps(a, _mm256_fmadd_ps(_mm256_mul_ps(s0, scale), scale0, _mm256_load_ps(a)));
    _mm256_store_ps(
        a + 8, _mm256_fmadd_ps(_mm256_mul_ps(s1, scale), scale1, _mm256_load_ps(a + 8)));
  }
}

/// A tile of 1 to 4 blocks and the activations that it meets.
struct Tile {
  const uint8_t* codes;
  uint32_t num_blocks;
  const Int8Block* x;  ///< of the tile's first block and the first token
  uint32_t x_stride;   ///< from one block to the next

  const uint8_t* block(uint32_t i) const { return codes + i * layout::block_bytes(layout::kMxfp4); }
  const uint8_t* e8m0(uint32_t i) const { return block(num_blocks) + i * layout::kRows; }
};

template <uint32_t T>
static void direct_tile(const Tile& tile, float* acc) {
  for (uint32_t i = 0; i < tile.num_blocks; ++i) {
    const uint8_t* codes = tile.block(i);
    const auto weights = [codes](uint32_t line, uint32_t half,
                                 uint32_t unit) __attribute__((always_inline)) {
      if (half == 0 && unit == 0) prefetch(codes + line * 64);
      return look_up(codes + line * 64 + unit * 32, half);
    };
    multiply_block<T, false>(weights, scales(tile.e8m0(i)), scales(tile.e8m0(i) + 8),
                             tile.x + uint64_t{i} * tile.x_stride, acc);
  }
}

static void direct_tile_any(uint32_t num_tokens, const Tile& tile, float* acc) {
  switch (num_tokens) {
    case 1:
      return direct_tile<1>(tile, acc);
    case 2:
      return direct_tile<2>(tile, acc);
    case 3:
      return direct_tile<3>(tile, acc);
    case 4:
      return direct_tile<4>(tile, acc);
    case 5:
      return direct_tile<5>(tile, acc);
    default:
      return direct_tile<6>(tile, acc);
  }
}

/// One block looked up: [line][half][16 rows][4 k] and its scales.
struct Panel {
  alignas(64) uint8_t weights[layout::kRows * layout::kBlockK];
  __m256 scale[2];
};

MIMO_RT_INLINE void fill_panel(const uint8_t* codes, const uint8_t* e8m0, Panel& panel) {
  for (uint32_t line = 0; line < kLines; ++line) {
    prefetch(codes + line * 64);
    auto* out = reinterpret_cast<__m256i*>(panel.weights + line * 128);
    for (uint32_t i = 0; i < 4; ++i)
      _mm256_store_si256(out + i, look_up(codes + line * 64 + i % 2 * 32, i / 2));
  }
  panel.scale[0] = scales(e8m0);
  panel.scale[1] = scales(e8m0 + 8);
}

template <uint32_t T>
static void panel_tokens(const Panel& panel, const Int8Block* x, float* acc) {
  const auto weights = [&panel](uint32_t line, uint32_t half,
                                uint32_t unit) __attribute__((always_inline)) {
    return load_bytes(panel.weights + line * 128 + half * 64 + unit * 32);
  };
  multiply_block<T, true>(weights, panel.scale[0], panel.scale[1], x, acc);
}

static void panel_tokens_any(uint32_t width, const Panel& panel, const Int8Block* x, float* acc) {
  switch (width) {
    case 1:
      return panel_tokens<1>(panel, x, acc);
    case 2:
      return panel_tokens<2>(panel, x, acc);
    case 3:
      return panel_tokens<3>(panel, x, acc);
    case 4:
      return panel_tokens<4>(panel, x, acc);
    case 5:
      return panel_tokens<5>(panel, x, acc);
    default:
      return panel_tokens<6>(panel, x, acc);
  }
}

/// Of the next group among `rest` tokens, groups as even as they get.
MIMO_RT_INLINE uint32_t group_width(uint32_t rest) {
  const uint32_t num_groups = (rest + kPanelGroup - 1) / kPanelGroup;
  return (rest + num_groups - 1) / num_groups;
}

static void panel_tile(uint32_t num_tokens, const Tile& tile, float* acc) {
  Panel panel;
  for (uint32_t i = 0; i < tile.num_blocks; ++i) {
    fill_panel(tile.block(i), tile.e8m0(i), panel);
    const Int8Block* x = tile.x + uint64_t{i} * tile.x_stride;
    for (uint32_t t = 0, width; t < num_tokens; t += width) {
      width = group_width(num_tokens - t);
      panel_tokens_any(width, panel, x + t, acc + t * layout::kRows);
    }
  }
}

/// Tokens [first, last) of the call.
static void multiply_tokens(const GemmArgs& args, uint32_t first, uint32_t last) {
  const uint32_t num_tokens = last - first;
  const Int8Block* x = static_cast<const Int8Block*>(args.x) + first;
  alignas(64) float acc[uint32_t{kBlockTokens} * layout::kRows];
  const uint8_t* codes = args.weights;
  for (uint32_t group = 0; group < args.num_row_groups; ++group) {
    for (uint32_t i = 0; i < num_tokens * layout::kRows; ++i) acc[i] = 0.0f;
    for (uint32_t k = 0; k < args.k; k += layout::kTileK) {
      const uint32_t left = (args.k - k) / layout::kBlockK;
      const uint32_t num_blocks =
          left < layout::kBlocksPerTile ? left : uint32_t{layout::kBlocksPerTile};
      const Tile tile = {codes, num_blocks, x + uint64_t{k / layout::kBlockK} * args.num_tokens,
                         args.num_tokens};
      if (num_tokens <= kMaxDirect)
        direct_tile_any(num_tokens, tile, acc);
      else
        panel_tile(num_tokens, tile, acc);
      codes += layout::tile_bytes(layout::kMxfp4, num_blocks);
    }
    for (uint32_t t = 0; t < num_tokens; ++t) {
      float* y = args.y + uint64_t{first + t} * args.y_stride + group * layout::kRows;
      for (uint32_t i = 0; i < layout::kRows; i += 8)
        _mm256_storeu_ps(y + i, _mm256_load_ps(acc + t * layout::kRows + i));
    }
  }
}

}  // namespace

void gemm_mxfp4_int8(const GemmArgs& args) {
  for (uint32_t first = 0; first < args.num_tokens; first += kBlockTokens) {
    const uint32_t rest = args.num_tokens - first;
    multiply_tokens(args, first, first + (rest < kBlockTokens ? rest : uint32_t{kBlockTokens}));
  }
}

void prepare_int8(const PrepareArgs& args) {
  quantise_tokens(args, [](const bf16_t* x, Int8Block& out) {
    quantise_block(x, out, paired_start);
  });
}

}  // namespace mimo_rt::cpu::avx2
