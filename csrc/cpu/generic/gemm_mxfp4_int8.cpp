// MXFP4 weights times INT8 activations, see ../shared/int8_block.h.
#include "entries.h"
#include "scalar.h"

#include "../shared/int8_block.h"

namespace mimo_rt::cpu::generic {
namespace {

enum : uint32_t { kBlockTokens = 16 };

// E2M1 by code, doubled.
const int8_t kDoubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/// A block of 32 k: doubled weights [k][row] and scales.
struct Weights {
  int16_t doubled[layout::kBlockK * layout::kRows];
  float scale[layout::kRows];
};

static void expand(const uint8_t* codes, const uint8_t* e8m0, Weights& out) {
  for (uint32_t j = 0; j < 4; ++j)
    for (uint32_t row = 0; row < layout::kRows; ++row)
      for (uint32_t b = 0; b < 4; ++b) {
        const uint32_t code = codes[j * 64 + row * 4 + b];
        out.doubled[(j * 8 + b) * layout::kRows + row] = kDoubled[code & 15u];
        out.doubled[(j * 8 + 4 + b) * layout::kRows + row] = kDoubled[code >> 4];
      }
  for (uint32_t row = 0; row < layout::kRows; ++row) {
    // Byte 0 means 2^-127, the subnormal 0x00400000.
    const uint32_t bits = e8m0[row] == 0 ? 0x00400000u : uint32_t{e8m0[row]} << 23;
    __builtin_memcpy(&out.scale[row], &bits, sizeof(bits));
  }
}

/// One block for one token: a row per lane, so that compilers vectorise it.
static inline void add_block(const Weights& weights, const Int8Block& x, float* acc) {
  int32_t sum[layout::kRows] = {};
  for (uint32_t k = 0; k < layout::kBlockK; ++k)
    for (uint32_t row = 0; row < layout::kRows; ++row)
      sum[row] += weights.doubled[k * layout::kRows + row] * x.q[k];
  for (uint32_t row = 0; row < layout::kRows; ++row)
    acc[row] += static_cast<float>(sum[row]) * x.half_scale * weights.scale[row];
}

/// Tokens [first, last) of the call.
static void multiply_tokens(const GemmArgs& args, uint32_t first, uint32_t last) {
  const Int8Block* x = static_cast<const Int8Block*>(args.x);
  const uint8_t* tile = args.weights;
  Weights weights;
  for (uint32_t group = 0; group < args.num_row_groups; ++group) {
    float acc[kBlockTokens][layout::kRows] = {};
    for (uint32_t k = 0; k < args.k; k += layout::kTileK) {
      const uint32_t left = (args.k - k) / layout::kBlockK;
      const uint32_t num_blocks =
          left < layout::kBlocksPerTile ? left : uint32_t{layout::kBlocksPerTile};
      const uint8_t* e8m0 = tile + num_blocks * layout::block_bytes(layout::kMxfp4);
      for (uint32_t block = 0; block < num_blocks; ++block) {
        expand(tile + block * layout::block_bytes(layout::kMxfp4), e8m0 + block * layout::kRows,
               weights);
        const uint64_t row = uint64_t{k / layout::kBlockK + block} * args.num_tokens;
        for (uint32_t t = first; t < last; ++t) add_block(weights, x[row + t], acc[t - first]);
      }
      tile += layout::tile_bytes(layout::kMxfp4, num_blocks);
    }
    for (uint32_t t = first; t < last; ++t)
      for (uint32_t row = 0; row < layout::kRows; ++row)
        args.y[uint64_t{t} * args.y_stride + group * layout::kRows + row] = acc[t - first][row];
  }
}

static void quantise_block(const bf16_t* x, Int8Block& out) {
  uint32_t largest = 0;
  for (uint32_t i = 0; i < layout::kBlockK; ++i) {
    const uint32_t magnitude = x[i] & 0x7fffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float inverse = begin_block(largest, out);
  if (inverse == 0.0f) return;
  for (uint32_t i = 0; i < layout::kBlockK; ++i) {
    // Numbers of this size have steps of one: the addition rounds to nearest even.
    const float rounded = widen(x[i]) * inverse + 0x1.8p23f;
    out.q[i] = static_cast<int8_t>(static_cast<int32_t>(rounded - 0x1.8p23f));
  }
  out.start = 0;
}

}  // namespace

void gemm_mxfp4_int8(const GemmArgs& args) {
  for (uint32_t first = 0; first < args.num_tokens; first += kBlockTokens) {
    const uint32_t rest = args.num_tokens - first;
    multiply_tokens(args, first, first + (rest < kBlockTokens ? rest : uint32_t{kBlockTokens}));
  }
}

void prepare_int8(const PrepareArgs& args) { quantise_tokens(args, quantise_block); }

}  // namespace mimo_rt::cpu::generic
