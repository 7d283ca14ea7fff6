// A row of q as attention multiplies it where the processor multiplies FP32: per 2 * kLanes elements the even ones,
// then the odd ones. The odd half of a pair comes first, as in vdpbf16ps.
//
// The includer has defined the vectors of its ISA.
#pragma once

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

enum : uint32_t { kQueryFloats = 2 * kLanes };  ///< that 2 * kLanes elements of q take

MIMO_RT_INLINE void store_query(float* place, Bf16Pairs q) {
  store(place, even(q));
  store(place + kLanes, odd(q));
}

/// sum + the products of `key` with what store_query left at `place`.
MIMO_RT_INLINE Vector add_products(Bf16Pairs key, const float* place, Vector sum) {
  sum = multiply_add(odd(key), load(place + kLanes), sum);
  return multiply_add(even(key), load(place), sum);
}

}  // namespace
}  // namespace mimo_rt::cpu::MIMO_RT_ISA
