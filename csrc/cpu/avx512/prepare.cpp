// Activations as the GEMM kernels of this folder read them, see gemm.h: [group of
// tokens][step][token][class] words of 4 bytes, pairs of bf16 or FP32.
#include "entries.h"
#include "gemm.h"
#include "simd.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

enum : uint32_t { kChunk = 32 };  ///< elements of a row that are reordered at a time

/// The k, within every 8, of the elements of a row in step order: what expand() of the format says.
struct Order {
  uint8_t k[8];
};
#if defined(MIMO_RT_AVX512_BF16)
constexpr Order kMxfp4 = {{0, 2, 4, 6, 1, 3, 5, 7}};
constexpr Order kFp8 = {{0, 1, 2, 3, 4, 5, 6, 7}};
constexpr Order kBf16 = {{0, 1, 2, 3, 4, 5, 6, 7}};
#else
constexpr Order kMxfp4 = {{2, 0, 6, 4, 3, 1, 7, 5}};
constexpr Order kFp8 = {{1, 3, 0, 2, 5, 7, 4, 6}};
constexpr Order kBf16 = {{1, 0, 3, 2, 5, 4, 7, 6}};
#endif
constexpr Order kF32 = {{0, 1, 2, 3, 4, 5, 6, 7}};

MIMO_RT_INLINE constexpr bool is_wide(int format) {
  return format == layout::kF32 || Pairs::kStepsPerPair == 2;
}

/// Indices for vpermw.
MIMO_RT_INLINE __m512i permutation(Order order) {
  alignas(64) uint16_t k[kChunk];
  for (uint32_t i = 0; i < kChunk; ++i) k[i] = static_cast<uint16_t>(i / 8 * 8 + order.k[i % 8]);
  return _mm512_load_si512(k);
}

/// Stores 16 words, `stride` words between steps of kClasses words.
template <uint32_t kClasses>
MIMO_RT_INLINE void store_words(__m512i words, uint32_t* out, uint32_t stride) {
  if (stride == kClasses) return _mm512_store_si512(out, words);
  alignas(64) uint32_t part[16];
  _mm512_store_si512(part, words);
#pragma GCC unroll 16
  for (uint32_t i = 0; i < 16; ++i) out[i / kClasses * stride + i % kClasses] = part[i];
}

/// One token of a group: `out` is its place in step 0, `stride` the words of a step.
template <uint32_t kClasses, bool kWide>
static void prepare_row(const bf16_t* row, const PrepareArgs& args, __m512i order, uint32_t* out,
                        uint32_t stride) {
  for (uint32_t k = 0; k < args.k; k += kChunk) {
    const uint32_t count = k < args.k_valid ? args.k_valid - k : 0;
    const __mmask32 valid = count >= kChunk ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
    const __m512i x =
        _mm512_permutexvar_epi16(order, _mm512_maskz_loadu_epi16(valid, row + k));
    if constexpr (kWide) {
      store_words<kClasses>(_mm512_castps_si512(widen(_mm512_castsi512_si256(x))), out, stride);
      out += 16 / kClasses * stride;
      store_words<kClasses>(_mm512_castps_si512(widen(_mm512_extracti64x4_epi64(x, 1))), out,
                            stride);
    } else {
      store_words<kClasses>(x, out, stride);
    }
    out += 16 / kClasses * stride;
  }
}

template <uint32_t kClasses, bool kWide>
static void prepare_tokens(const PrepareArgs& args, Order order_of_8) {
  const __m512i order = permutation(order_of_8);
  uint32_t* out = static_cast<uint32_t*>(args.prepared);
  for (uint32_t first = 0; first < args.num_tokens;) {
    const uint32_t width = group_width(args.num_tokens, first);
    for (uint32_t t = 0; t < width; ++t) {
      const uint32_t row = args.row_ids ? args.row_ids[first + t] : first + t;
      prepare_row<kClasses, kWide>(args.x + uint64_t{row} * args.x_stride, args, order,
                                   out + t * kClasses, width * kClasses);
    }
    out += uint64_t{width} * (kWide ? args.k : args.k / 2);
    first += width;
  }
}

}  // namespace

uint64_t prepared_bytes(int format, uint32_t num_tokens, uint32_t k) {
  return uint64_t{num_tokens} * k * (is_wide(format) ? 4 : 2);
}

void prepare(int format, const PrepareArgs& args) {
  switch (format) {
    case layout::kMxfp4:
      return prepare_tokens<1, is_wide(layout::kMxfp4)>(args, kMxfp4);
    case layout::kFp8:
      return prepare_tokens<2, is_wide(layout::kFp8)>(args, kFp8);
    case layout::kBf16:
      return prepare_tokens<1, is_wide(layout::kBf16)>(args, kBf16);
    default:
      return prepare_tokens<1, true>(args, kF32);
  }
}

}  // namespace mimo_rt::cpu::MIMO_RT_ISA
