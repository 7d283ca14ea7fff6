// Weights out of packed matrices, one at a time or a row group at once, as exact float64 numbers.
#pragma once

#include "weights/packed.h"

namespace mimo_rt::ref {

/// The weight at (row, k) of a packed matrix, scale included; exact.
double packed_weight(const PackedMatrix& matrix, uint32_t row, uint32_t k);

/// All weights of one group of 16 rows: out[k * 16 + row], matrix.k * 16 numbers.
void unpack_row_group(const PackedMatrix& matrix, uint32_t group, double* out);

}  // namespace mimo_rt::ref
