// Random bytes for all matrices and vectors of a layout: every row group has its own generator, so they depend on the
// seed alone, not on the number of threads.
#pragma once

#include "weights/layout.h"

#include <cstdint>
#include <functional>

namespace mimo_rt {

/// A counter through a bijective 64-bit mixer (finalizer of MurmurHash3, constants of variant 13).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(mix(seed)) {}
  uint64_t next() { return mix(state_ += 0x9e3779b97f4a7c15u); }

  static uint64_t mix(uint64_t bits) {
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    return bits ^ bits >> 31;
  }

 private:
  uint64_t state_;
};

struct RandomFill {
  const WeightsLayout& layout;
  const Arena& arena;
  uint64_t seed = 0;
  const char* where = "";  ///< the public operation, for errors
  /// Which rows of a group are not padding, as bits.
  std::function<uint32_t(const MatrixSlot&, uint32_t group)> valid_lanes;
  /// The root mean square of the stored values.
  std::function<float(const MatrixSlot&)> wanted_rms;
};

void fill_random(const RandomFill& fill);

/// Rows of group `group` below `num_rows`, as bits.
uint32_t first_lanes(uint32_t num_rows, uint32_t group);

}  // namespace mimo_rt
