// Random bytes for all matrices and vectors of a layout: every row group has its own generator, so they depend on the
// seed alone, not on the number of threads.
#pragma once

#include "weights/layout.h"
#include "weights/random_values.h"

#include <cstdint>
#include <functional>

namespace mimo_rt {

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
