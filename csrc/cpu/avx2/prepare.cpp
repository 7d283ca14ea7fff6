// Activations as the GEMM kernels of this folder read them: FP32, [group of
// tokens][k-step][token][class].
#include "entries.h"
#include "gemm.h"

namespace mimo_rt::cpu::avx2 {
namespace {

/// Elements k..k+7 of a row as FP32; those at k_valid and beyond are zero.
MIMO_RT_INLINE __m256 load_row(const bf16_t* row, uint32_t k, uint32_t k_valid) {
  __m128i bits;
  if (k + 8 <= k_valid) {
    bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + k));
  } else {
    alignas(16) bf16_t part[8] = {};
    for (uint32_t i = 0; k + i < k_valid; ++i) part[i] = row[k + i];
    bits = _mm_load_si128(reinterpret_cast<const __m128i*>(part));
  }
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

/// One token of a group: `out` is its place in k-step 0, `stride` the floats of a k-step.
template <uint32_t kClasses>
static void prepare_row(const bf16_t* row, uint32_t k_valid, uint32_t k_padded, float* out,
                        uint32_t stride) {
  alignas(32) float values[8];
  for (uint32_t k = 0; k < k_padded; k += 8) {
    __m256 x = load_row(row, k, k_valid);
    // Two classes: the k-steps of k..k+3 are (k, k+2) and (k+1, k+3).
    if constexpr (kClasses == 2)
      x = _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7));
    if (stride == kClasses) {
      _mm256_store_ps(out + k, x);
      continue;
    }
    _mm256_store_ps(values, x);
    for (uint32_t i = 0; i < 8; i += kClasses)
      for (uint32_t c = 0; c < kClasses; ++c)
        out[uint64_t{(k + i) / kClasses} * stride + c] = values[i + c];
  }
}

template <uint32_t kClasses>
static void prepare_tokens(const PrepareArgs& args) {
  float* out = static_cast<float*>(args.prepared);
  for (uint32_t first = 0; first < args.num_tokens;) {
    const uint32_t width = group_width(args.num_tokens, first);
    for (uint32_t t = 0; t < width; ++t) {
      const uint32_t row = args.row_ids ? args.row_ids[first + t] : first + t;
      prepare_row<kClasses>(args.x + uint64_t{row} * args.x_stride, args.k_valid, args.k,
                            out + t * kClasses, width * kClasses);
    }
    out += uint64_t{width} * args.k;
    first += width;
  }
}

}  // namespace

uint64_t prepared_bytes(int format, uint32_t num_tokens, uint32_t k) {
  if (format == layout::kMxfp4) return prepared_bytes_mxfp4(num_tokens, k);
  return uint64_t{num_tokens} * k * sizeof(float);
}

void prepare(int format, const PrepareArgs& args) {
  if (format == layout::kMxfp4) return prepare_mxfp4(args);
  return format == layout::kFp8 ? prepare_tokens<2>(args) : prepare_tokens<1>(args);
}

}  // namespace mimo_rt::cpu::avx2
