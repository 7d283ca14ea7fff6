// What packers for the CUDA kernels ask of a stored expert matrix.
#pragma once

#include "checkpoint/tensor_table.h"
#include "weights/pack.h"
#include "weights/rank_slice.h"

namespace mimo_rt {

/// @throws Error{unsupported_shape} unless MXFP4 with a multiple of `row_multiple` rows and of 32
///         columns, from a multiple of 32 on
void check_cuda_expert(const MatrixSource& source, ColumnSlice columns, uint32_t row_multiple);

/// Both of them, with multiples of 32 rows. @throws Error{shape_mismatch} unless of one shape
void check_cuda_gate_up(const MatrixSource& gate, const MatrixSource& up);

/// Codes and scales of a row's columns.
/// @throws Error{bad_format} for NaN scales; Error{unsupported_shape} for scales above `max_e8m0`
PackRow cuda_expert_row(const MatrixSource& source, uint32_t row, ColumnSlice columns,
                        uint32_t max_e8m0);

}  // namespace mimo_rt
