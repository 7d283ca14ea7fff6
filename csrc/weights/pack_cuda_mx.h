// From the rows of a checkpoint to the layout of cuda_mx.h. Packing never changes a code.
#pragma once

#include "checkpoint/tensor_table.h"
#include "weights/cuda_mx.h"
#include "weights/pack.h"
#include "weights/rank_slice.h"

namespace mimo_rt {

/// Puts row `row` of a matrix at `matrix` in its place: its codes, its scales, their padding.
void pack_cuda_mx_row(const CudaMxShape& shape, uint32_t row, const PackRow& stored,
                      uint8_t* matrix);
/// The scales of rows beyond the matrix, of which the last atom has places.
void pack_cuda_mx_end(const CudaMxShape& shape, uint8_t* matrix);

/// The inverse of `pack_cuda_mx_row`, written from the definition in cuda_mx.h. k is padded.
UnpackedRow unpack_cuda_mx_row(const CudaMxShape& shape, const uint8_t* matrix, uint32_t row);

/// The matrices of one expert. `gate` and `up` have equal shapes.
/// @throws as check_cuda_gate_up and check_cuda_expert
CudaMxShape cuda_mx_gate_up_shape(const MatrixSource& gate, const MatrixSource& up);
CudaMxShape cuda_mx_down_shape(const MatrixSource& down, ColumnSlice columns);

/// Packs one expert; writes all `bytes()` of the shape.
/// @throws as the shapes; Error{bad_format} for NaN scales
void pack_cuda_mx_gate_up(const MatrixSource& gate, const MatrixSource& up, uint8_t* out);
void pack_cuda_mx_down(const MatrixSource& down, ColumnSlice columns, uint8_t* out);

}  // namespace mimo_rt
