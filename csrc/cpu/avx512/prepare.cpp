// Activations as the GEMM kernels of this folder read them: pairs of bf16 (f32 weights: FP32) in
// words of 4 bytes, [group of tokens][step][token][class].
#include "entries.h"
#include "gemm.h"

namespace mimo_rt::cpu::avx512 {
namespace {

MIMO_RT_INLINE uint32_t element(const bf16_t* row, uint32_t k, uint32_t k_valid) {
  return k < k_valid ? row[k] : 0u;
}

/// Word `w` of a row in step order.
MIMO_RT_INLINE uint32_t word(int format, const bf16_t* row, uint32_t w, uint32_t k_valid) {
  if (format == layout::kF32) return element(row, w, k_valid) << 16;
  if (format != layout::kMxfp4)
    return element(row, 2 * w, k_valid) | element(row, 2 * w + 1, k_valid) << 16;
  constexpr uint32_t kFirst[4] = {0, 4, 1, 5};  // of the pair (k, k + 2), see Mxfp4::expand
  const uint32_t k = w / 4 * 8 + kFirst[w % 4];
  return element(row, k, k_valid) | element(row, k + 2, k_valid) << 16;
}

}  // namespace

uint64_t prepared_bytes(int format, uint32_t num_tokens, uint32_t k) {
  return uint64_t{num_tokens} * k * (format == layout::kF32 ? 4 : 2);
}

void prepare(int format, const PrepareArgs& args) {
  const uint32_t classes = format == layout::kFp8 ? 2 : 1;
  const uint32_t num_words = format == layout::kF32 ? args.k : args.k / 2;
  uint32_t* out = static_cast<uint32_t*>(args.prepared);
  for (uint32_t first = 0; first < args.num_tokens;) {
    const uint32_t width = group_width(args.num_tokens, first);
    for (uint32_t t = 0; t < width; ++t) {
      const uint32_t row_id = args.row_ids ? args.row_ids[first + t] : first + t;
      const bf16_t* row = args.x + uint64_t{row_id} * args.x_stride;
      for (uint32_t w = 0; w < num_words; w += classes)
        for (uint32_t c = 0; c < classes; ++c)
          out[uint64_t{w} * width + t * classes + c] = word(format, row, w + c, args.k_valid);
    }
    out += uint64_t{width} * num_words;
    first += width;
  }
}

}  // namespace mimo_rt::cpu::avx512
