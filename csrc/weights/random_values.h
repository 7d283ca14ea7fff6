// Random codes, scales and values of the stored formats, with a chosen root mean square.
#pragma once

#include "weights/packed.h"

#include <cstddef>
#include <cstdint>

namespace mimo_rt {

/// A counter through a bijective 64-bit mixer (finalizer of MurmurHash3, constants of variant 13).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(mix(seed)) {}
  uint64_t next() { return mix(state_ += 0x9e3779b97f4a7c15u); }
  float near(float mean, float spread);  ///< evenly in [mean - spread, mean + spread)

  static uint64_t mix(uint64_t bits) {
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    return bits ^ bits >> 31;
  }

 private:
  uint64_t state_;
};

/// Root mean square of uniformly random codes of a format, without its scale.
float code_rms(PackedFormat format);

// All of these write whole 8-byte words: `out` has room for `count` elements and 7 bytes. `scale`: the root mean square
// wanted, over code_rms.
void fill_mxfp4_codes(std::byte* out, uint64_t count, Random& random);
/// E8M0, half of them twice as small.
void fill_mxfp4_scales(std::byte* out, uint64_t count, float scale, Random& random);
/// No NaN, zero or subnormal: trained weights hardly have the last, which slow some processors down.
void fill_fp8_codes(std::byte* out, uint64_t count, Random& random);
void fill_bf16(std::byte* out, uint64_t count, float scale, Random& random);
/// Values that BF16 holds.
void fill_f32(std::byte* out, uint64_t count, float scale, Random& random);

}  // namespace mimo_rt
