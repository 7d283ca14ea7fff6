// Which part of a stored matrix one rank holds: a run of its rows, or a run of its columns.
#pragma once

#include <cstdint>

#include "checkpoint/tensor_table.h"

namespace mimo_rt {

/// One of `count` devices that share a model: each holds 1 / count of the heads, of the widths and
/// of the vocabulary.
struct Rank {
  uint32_t index = 0, count = 1;
};

/// Columns [first, first + count) of a matrix.
struct ColumnSlice {
  uint32_t first = 0, count = 0;

  static ColumnSlice all(const MatrixSource& source) { return {0, source.k}; }
};

/// Rows [first, first + count) of `source`.
/// @throws Error{unsupported_shape} when they begin and end inside different pieces of a fused tensor
MatrixSource slice_rows(const MatrixSource& source, uint32_t first, uint32_t count);

/// The rank's share of `size`: index * share begins it.
/// @throws Error{unsupported_shape} when it is no multiple of `step`; `name` says of what
uint32_t share_of_rank(const char* name, uint32_t size, const Rank& rank, uint32_t step);

}  // namespace mimo_rt
