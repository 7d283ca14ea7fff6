// Activations as the FP32 kernels of this folder read them: [group of tokens][k][token], then a
// factor per token for its results.
//
// fp8 weights are read as multiples of 2^-120 (gemm_fp8.cpp). The activations of a token are
// multiplied by a power of two that brings the largest to 2^126, so that products are exact down to
// 2^-149: activations down to 2^-135 of the token's largest, or down to BF16's smallest where the
// largest is below one. The factor undoes both.
#include "entries.h"
#include "gemm.h"

namespace mimo_rt::cpu::avx2 {
namespace {

MIMO_RT_INLINE __m128i load_bits(const bf16_t* row, uint32_t k, uint32_t k_valid) {
  if (k + 8 <= k_valid) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + k));
  alignas(16) bf16_t part[8] = {};
  for (uint32_t i = 0; k + i < k_valid; ++i) part[i] = row[k + i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(part));
}

/// The exponent field of the row's largest finite activation.
static uint32_t max_exponent(const bf16_t* row, uint32_t k_valid) {
  const __m128i infinity = _mm_set1_epi16(0x7f80);
  __m128i largest = _mm_setzero_si128();
  for (uint32_t k = 0; k < k_valid; k += 8) {
    const __m128i exponent = _mm_and_si128(load_bits(row, k, k_valid), infinity);
    largest = _mm_max_epi16(largest,
                            _mm_andnot_si128(_mm_cmpeq_epi16(exponent, infinity), exponent));
  }
  largest = _mm_max_epi16(largest, _mm_srli_si128(largest, 8));
  largest = _mm_max_epi16(largest, _mm_srli_si128(largest, 4));
  largest = _mm_max_epi16(largest, _mm_srli_si128(largest, 2));
  return (static_cast<uint32_t>(_mm_cvtsi128_si32(largest)) & 0xffffu) >> 7;
}

MIMO_RT_INLINE float power_of_two(uint32_t exponent_field) {
  const uint32_t bits = exponent_field << 23;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

/// One token of a group: `out` is its place in the first k, `stride` the tokens of the group.
static void prepare_row(const bf16_t* row, uint32_t k_valid, uint32_t k_padded, float scale,
                        float* out, uint32_t stride) {
  alignas(32) float values[8];
  for (uint32_t k = 0; k < k_padded; k += 8) {
    const __m256i bits =
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_bits(row, k, k_valid)), 16);
    const __m256 x = _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(scale));
    if (stride == 1) {
      _mm256_store_ps(out + k, x);
      continue;
    }
    _mm256_store_ps(values, x);
    for (uint32_t i = 0; i < 8; ++i) out[uint64_t{k + i} * stride] = values[i];
  }
}

static void prepare_tokens(int format, const PrepareArgs& args) {
  float* out = static_cast<float*>(args.prepared);
  float* factor = out + uint64_t{args.num_tokens} * args.k;
  for (uint32_t first = 0; first < args.num_tokens;) {
    const uint32_t width = group_width(format, args.num_tokens, first);
    for (uint32_t t = 0; t < width; ++t) {
      const uint32_t index = args.row_ids ? args.row_ids[first + t] : first + t;
      const bf16_t* row = args.x + uint64_t{index} * args.x_stride;
      float scale = 1.0f;
      *factor = 1.0f;
      if (format == layout::kFp8) {
        // 2^127 is the largest power of two there is; the factor is 2^120 / scale.
        const uint32_t field = max_exponent(row, args.k_valid);
        const uint32_t up = field < 126 ? 254 : 380 - field;
        scale = power_of_two(up);
        *factor = power_of_two(127 + 120 + 127 - up);
      }
      prepare_row(row, args.k_valid, args.k, scale, out + t, width);
      ++factor;
    }
    out += uint64_t{width} * args.k;
    first += width;
  }
}

}  // namespace

uint64_t prepared_bytes(int format, uint32_t num_tokens, uint32_t k) {
  if (format == layout::kMxfp4) return prepared_bytes_mxfp4(num_tokens, k);
  return uint64_t{num_tokens} * (k + 1) * sizeof(float);
}

void prepare(int format, const PrepareArgs& args) {
  if (format == layout::kMxfp4) return prepare_mxfp4(args);
  prepare_tokens(format, args);
}

}  // namespace mimo_rt::cpu::avx2
