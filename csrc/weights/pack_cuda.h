// From the rows of a checkpoint to the tiles of cuda_tiles.h. Packing never changes a code.
#pragma once

#include <cstdint>
#include <span>

#include "checkpoint/tensor_table.h"
#include "weights/cuda_tiles.h"
#include "weights/pack.h"
#include "weights/rank_slice.h"

namespace mimo_rt {

/// Shape of one packed expert matrix, rows of gate and up counted together.
struct CudaMatrixShape {
  uint32_t rows = 0;  ///< multiple of 16
  uint32_t k = 0;     ///< multiple of 32

  uint32_t num_row_groups() const { return rows / kCudaTileRows; }
  uint32_t tiles_per_group() const { return (k + kCudaTileK - 1) / kCudaTileK; }
  uint64_t group_bytes() const { return uint64_t{tiles_per_group()} * kCudaTileBytes; }
  uint64_t bytes() const { return num_row_groups() * group_bytes(); }
};

/// Packs one group of rows of `k` stored MXFP4 weights. Writes all `group_bytes()` of `out`.
void pack_cuda_rows(uint32_t k, std::span<const PackRow, kCudaTileRows> rows, uint8_t* out);

/// The inverse of `pack_cuda_rows` for row `row` of a matrix at `data`, written from the definition
/// in cuda_tiles.h, bit by bit. k is padded to whole tiles.
UnpackedRow unpack_cuda_row(const CudaMatrixShape& shape, const uint8_t* data, uint32_t row);

/// The matrices of one expert. `gate` and `up` have equal shapes. A rank's share: rows of gate and
/// up (`slice_rows`), columns of down.
/// @throws Error{unsupported_shape} when a width does not fit the layout
CudaMatrixShape cuda_gate_up_shape(const MatrixSource& gate, const MatrixSource& up);
CudaMatrixShape cuda_down_shape(const MatrixSource& down, ColumnSlice columns);
inline CudaMatrixShape cuda_down_shape(const MatrixSource& down) {
  return cuda_down_shape(down, ColumnSlice::all(down));
}

/// Packs one expert; writes all `bytes()` of the shape.
/// @throws Error{unsupported_shape} for shapes that do not fit and block scales above 2^25;
///         Error{bad_format} for NaN scales
void pack_cuda_gate_up(const MatrixSource& gate, const MatrixSource& up, uint8_t* out);
void pack_cuda_down(const MatrixSource& down, ColumnSlice columns, uint8_t* out);
inline void pack_cuda_down(const MatrixSource& down, uint8_t* out) {
  pack_cuda_down(down, ColumnSlice::all(down), out);
}

}  // namespace mimo_rt
