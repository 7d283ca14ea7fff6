// One q head of one token in float64: softmax(scale q k, sink) v, and what bounds its errors.
#pragma once

#include <cstdint>
#include <vector>

#include "core/numeric.h"
#include "kbench/random_rows.h"

namespace mimo_rt::kbench {

struct ReferenceHead {
  std::vector<double> p;           ///< of each key
  double score_magnitude = 0;      ///< largest sum of |scale q k| over the dims
  double range = 0, max_abs = 0;   ///< of the scores and the sink: max - min, |max|

  ReferenceHead() = default;
  /// `keys`: [num_keys, dim]
  ReferenceHead(const bf16_t* q, const bf16_t* keys, uint32_t num_keys, uint32_t dim, double scale,
                double sink);
  /// sum of p v over the keys for one dim of the values, [num_keys, dim].
  Product weighted(const bf16_t* values, uint32_t dim, uint32_t i) const;
};

}  // namespace mimo_rt::kbench
