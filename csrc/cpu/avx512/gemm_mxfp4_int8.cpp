// MXFP4 weights times INT8 activations, see ../shared/int8_block.h.
//
// A dword lane is one row; its four bytes are four k. Where the processor has VNNI, vpdpbusd
// multiplies biased weights (0..24, unsigned) by activations (signed) into sums of 32 bits. Where
// not, sums of 16 bits do the same: why they are exact is in ../avx2/gemm_mxfp4_int8.cpp.
#include "entries.h"
#include "prefetch.h"

#include "../shared/int8_quantise.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace int8 {  // the tests compile all files of this folder as one
namespace {

enum : uint32_t { kGroupTokens = 8, kBlockTokens = 64, kSteps = 8 };

#if defined(MIMO_RT_AVX512_BF16)
/// The low four bits of every byte choose; vpermb ignores the upper two of eight and finds the
/// table repeated.
MIMO_RT_INLINE __m512i look_up(__m512i codes) {
  return _mm512_permutexvar_epi8(codes, _mm512_load_si512(kBiasedWeights));
}

MIMO_RT_INLINE __m512i add_products(__m512i sum, __m512i weights, __m512i q) {
  return _mm512_dpbusd_epi32(sum, weights, q);
}

MIMO_RT_INLINE __m512i finish(__m512i sum) { return sum; }

MIMO_RT_INLINE Start start_of(__m256i bytes) { return whole_start(bytes); }
#else
MIMO_RT_INLINE __m512i look_up(__m512i codes) {
  return _mm512_shuffle_epi8(_mm512_load_si512(kBiasedWeights),
                             _mm512_and_si512(codes, _mm512_set1_epi8(15)));
}

MIMO_RT_INLINE __m512i add_products(__m512i sum, __m512i weights, __m512i q) {
  return _mm512_add_epi16(sum, _mm512_maddubs_epi16(weights, q));
}

MIMO_RT_INLINE __m512i finish(__m512i sum) {
  return _mm512_madd_epi16(sum, _mm512_set1_epi16(1));
}

MIMO_RT_INLINE Start start_of(__m256i bytes) { return paired_start(bytes); }
#endif

MIMO_RT_INLINE __m512i broadcast(const int8_t* q) {
  int32_t four;
  __builtin_memcpy(&four, q, sizeof(four));
  return _mm512_set1_epi32(four);
}

/// One block for T tokens, acc: [T][16 rows].
template <uint32_t T>
MIMO_RT_INLINE void multiply_block(const uint8_t* codes, const uint8_t* e8m0, const Int8Block* x,
                                   float* acc) {
  __m512i sum[T];
#pragma GCC unroll 8
  for (uint32_t t = 0; t < T; ++t) sum[t] = _mm512_set1_epi32(x[t].start);
#pragma GCC unroll 8
  for (uint32_t step = 0; step < kSteps; step += 2) {
    const uint8_t* line = codes + step * 32;
    prefetch_near(line, 0);
    const __m512i both = _mm512_load_si512(line);
    const __m512i w0 = look_up(both), w1 = look_up(_mm512_srli_epi16(both, 4));
#pragma GCC unroll 8
    for (uint32_t t = 0; t < T; ++t) {
      sum[t] = add_products(sum[t], w0, broadcast(x[t].q + step * 4));
      sum[t] = add_products(sum[t], w1, broadcast(x[t].q + step * 4 + 4));
    }
  }
  // Byte 0 means 2^-127, the subnormal 0x00400000.
  const __m512i exponent =
      _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(e8m0)));
  const __m512 scale = _mm512_castsi512_ps(
      _mm512_max_epi32(_mm512_slli_epi32(exponent, 23), _mm512_set1_epi32(0x00400000)));
#pragma GCC unroll 8
  for (uint32_t t = 0; t < T; ++t) {
    const __m512 product =
        _mm512_mul_ps(_mm512_cvtepi32_ps(finish(sum[t])), _mm512_set1_ps(x[t].half_scale));
    float* a = acc + t * layout::kRows;
    _mm512_store_ps(a, _mm512_fmadd_ps(product, scale, _mm512_load_ps(a)));
  }
}

/// A tile of 1 to 4 blocks; `x_stride` activations from one block to the next.
template <uint32_t T>
static void multiply_tile(const uint8_t* tile, uint32_t num_blocks, const Int8Block* x,
                          uint32_t x_stride, float* acc) {
  const uint8_t* e8m0 = tile + num_blocks * layout::block_bytes(layout::kMxfp4);
  for (uint32_t i = 0; i < num_blocks; ++i)
    multiply_block<T>(tile + i * layout::block_bytes(layout::kMxfp4), e8m0 + i * layout::kRows,
                      x + uint64_t{i} * x_stride, acc);
}

static void multiply_tile_any(uint32_t num_tokens, const uint8_t* tile, uint32_t num_blocks,
                              const Int8Block* x, uint32_t x_stride, float* acc) {
  switch (num_tokens) {
    case 1:
      return multiply_tile<1>(tile, num_blocks, x, x_stride, acc);
    case 2:
      return multiply_tile<2>(tile, num_blocks, x, x_stride, acc);
    case 3:
      return multiply_tile<3>(tile, num_blocks, x, x_stride, acc);
    case 4:
      return multiply_tile<4>(tile, num_blocks, x, x_stride, acc);
    case 5:
      return multiply_tile<5>(tile, num_blocks, x, x_stride, acc);
    case 6:
      return multiply_tile<6>(tile, num_blocks, x, x_stride, acc);
    case 7:
      return multiply_tile<7>(tile, num_blocks, x, x_stride, acc);
    default:
      return multiply_tile<8>(tile, num_blocks, x, x_stride, acc);
  }
}

/// Tokens [first, last) of the call.
static void multiply_tokens(const GemmArgs& args, uint32_t first, uint32_t last) {
  const uint32_t num_tokens = last - first;
  const Int8Block* x = static_cast<const Int8Block*>(args.x) + first;
  alignas(64) float acc[uint32_t{kBlockTokens} * layout::kRows];
  const uint8_t* tile = args.weights;
  for (uint32_t group = 0; group < args.num_row_groups; ++group) {
    for (uint32_t i = 0; i < num_tokens * layout::kRows; ++i) acc[i] = 0.0f;
    for (uint32_t k = 0; k < args.k; k += layout::kTileK) {
      const uint32_t left = (args.k - k) / layout::kBlockK;
      const uint32_t num_blocks =
          left < layout::kBlocksPerTile ? left : uint32_t{layout::kBlocksPerTile};
      const Int8Block* tile_x = x + uint64_t{k / layout::kBlockK} * args.num_tokens;
      for (uint32_t t = 0; t < num_tokens; t += kGroupTokens) {
        const uint32_t rest = num_tokens - t;
        multiply_tile_any(rest < kGroupTokens ? rest : uint32_t{kGroupTokens}, tile, num_blocks,
                          tile_x + t, args.num_tokens, acc + t * layout::kRows);
      }
      tile += layout::tile_bytes(layout::kMxfp4, num_blocks);
    }
    for (uint32_t t = 0; t < num_tokens; ++t)
      _mm512_storeu_ps(args.y + uint64_t{first + t} * args.y_stride + group * layout::kRows,
                       _mm512_load_ps(acc + t * layout::kRows));
  }
}

static void multiply_all(const GemmArgs& args) {
  for (uint32_t first = 0; first < args.num_tokens; first += kBlockTokens) {
    const uint32_t rest = args.num_tokens - first;
    multiply_tokens(args, first, first + (rest < kBlockTokens ? rest : uint32_t{kBlockTokens}));
  }
}

}  // namespace
}  // namespace int8

void gemm_mxfp4_int8(const GemmArgs& args) { int8::multiply_all(args); }

void prepare_int8(const PrepareArgs& args) {
  quantise_tokens(args, [](const bf16_t* x, Int8Block& out) {
    quantise_block(x, out, int8::start_of);
  });
}

}  // namespace mimo_rt::cpu::MIMO_RT_ISA
