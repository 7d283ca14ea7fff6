// INT8 activations as the MXFP4 kernels of every ISA read them; csrc/core/activations.h defines
// them.
//
// Prepared: [block of 32 k][token] of Int8Block. A kernel may take the tokens in any groups: their
// places do not depend on it.
//
// The sum of a block. E2M1 weights doubled are integers w in -12..12 and |q| <= 127, so a block's
// sum S of w q has at most 32 * 12 * 127 = 48,768 in magnitude: exact in every ISA, whatever the
// order. Then, blocks ascending and from zero,
//   acc += (float(S) * half_scale) * weight scale
// where float(S) is exact, the first product is rounded and the second is exact, the weight scale
// being a power of two: fused or not, the sum has the same bits. So all ISAs agree bit for bit,
// unless a term falls below 2^-126 or overflows.
#pragma once

#include <stdint.h>

#include "../tile_layout.h"
#include "entries.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

struct Int8Block {
  int8_t q[layout::kBlockK];
  int32_t start;     ///< of the kernel's sums, where its weights have a bias (biased_weights.h)
  float half_scale;  ///< NaN where an activation is not finite: so become the results
};
static_assert(sizeof(Int8Block) == 40);

/// Largest |activation| of a block, as bf16 bits without the sign -> what its activations are
/// multiplied with before they are rounded; 0: not at all, they are zero.
MIMO_RT_INLINE float begin_block(uint32_t largest, Int8Block& out) {
  const uint32_t bits = largest << 16;
  float amax;
  __builtin_memcpy(&amax, &bits, sizeof(amax));
  const bool is_finite = largest < 0x7f80u;
  if (is_finite && amax >= 0x1p-100f) {
    out.half_scale = amax / 127.0f * 0.5f;
    return 127.0f / amax;
  }
  __builtin_memset(out.q, 0, sizeof(out.q));
  out.start = 0;
  out.half_scale = is_finite ? 0.0f : __builtin_nanf("");
  return 0.0f;
}

/// `quantise(x, out)` makes a block of 32 activations.
template <class Quantise>
static void quantise_tokens(const PrepareArgs& args, const Quantise& quantise) {
  Int8Block* out = static_cast<Int8Block*>(args.prepared);
  for (uint32_t t = 0; t < args.num_tokens; ++t) {
    const bf16_t* row = args.x + uint64_t{args.row_ids ? args.row_ids[t] : t} * args.x_stride;
    for (uint32_t k = 0; k < args.k; k += layout::kBlockK) {
      Int8Block& block = out[uint64_t{k / layout::kBlockK} * args.num_tokens + t];
      if (k + layout::kBlockK <= args.k_valid) {
        quantise(row + k, block);
      } else {
        bf16_t part[layout::kBlockK] = {};
        for (uint32_t i = 0; k + i < args.k_valid; ++i) part[i] = row[k + i];
        quantise(part, block);
      }
    }
  }
}

}  // namespace
}  // namespace mimo_rt::cpu::MIMO_RT_ISA
