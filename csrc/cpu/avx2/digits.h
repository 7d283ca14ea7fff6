// Activations for mxfp4 weights as digits, so that products are sums of small integers.
//
// A weight is w / 2 times its scale, with an integer |w| <= 12. A block of 32 activations of a
// token is x = (256 high + low) unit + rest: unit is a power of two, the digits are signed bytes.
// The sum over a block of w times a digit is exact in 16-bit integers; only adding the sums up
// rounds, where 32 FMAs round 32 times. This is no quantisation: every bit of every activation
// takes part.
//
// high and low hold the 16 bits below the block's largest activation. What they leave of an
// activation is multiplied on its own: of one in 130 of a normal distribution, of one in 20 behind
// a gated MLP, of infinities and NaN.
//
// Prepared activations: [block][token] Digits, then [block][token] Rests.
#pragma once

#include <stdint.h>

#include "entries.h"

#include "../shared/biased_weights.h"

namespace mimo_rt::cpu::avx2 {
namespace {

struct Digits {
  int8_t high[layout::kBlockK];
  int8_t low[layout::kBlockK];
  Start starts[2];  ///< of high, of low
  float half_unit;
  uint32_t rest_mask;  ///< bit k: activation k has a rest
};

/// Element k is zero where bit k of rest_mask is; nothing is written where all bits are.
struct Rests {
  float values[layout::kBlockK];
};

MIMO_RT_INLINE uint64_t digits_bytes(uint32_t num_tokens, uint32_t k) {
  return uint64_t{k / layout::kBlockK} * num_tokens * sizeof(Digits);
}

}  // namespace
}  // namespace mimo_rt::cpu::avx2
