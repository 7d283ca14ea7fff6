// Activations for mxfp4 weights as digits, so that products are sums of small integers.
//
// A weight is w / 2 times its scale, with an integer |w| <= 12. A block of 32 activations of a
// token is x = (256 high + low + extra / 256) unit + rest: unit is a power of two, the digits are
// signed bytes. The sum over a block of w times a digit is exact in 16-bit integers; only adding
// the sums up rounds, where 32 FMAs round 32 times. This is no quantisation: every bit of every
// activation takes part.
//
// high and low hold the 16 bits below the block's largest activation. Blocks that have more, a fifth
// of those of a normal distribution and most of those behind a gated MLP, have an Extra: another
// digit, and as rest what spans more than 24 bits, infinities and NaN.
//
// Prepared activations: [block] numbers of Extras, [block][token] Digits, [block][token] Extras,
// the first of them in use.
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
};

struct Extra {
  uint32_t token;
  Start start;
  float half_unit;     ///< of `digit`
  uint32_t rest_mask;  ///< bit k: rest[k] is not zero
  int8_t digit[layout::kBlockK];
  float rest[layout::kBlockK];
};

/// Where the parts lie, in bytes from the start.
struct DigitsLayout {
  DigitsLayout(uint32_t num_tokens, uint32_t k) {
    const uint64_t num_blocks = k / layout::kBlockK;
    digits = (num_blocks * sizeof(uint32_t) + 63) / 64 * 64;
    extras = digits + num_blocks * num_tokens * sizeof(Digits);
    num_bytes = extras + num_blocks * num_tokens * sizeof(Extra);
  }

  uint64_t digits, extras, num_bytes;
};

}  // namespace
}  // namespace mimo_rt::cpu::avx2
