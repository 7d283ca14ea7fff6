// From the rows of a checkpoint to the tiles of cuda_dense_tiles.h. Packing never changes a code.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "weights/cuda_dense_tiles.h"
#include "weights/pack.h"
#include "weights/rank_slice.h"

namespace mimo_rt {

/// Shape of one packed dense matrix.
struct CudaDenseShape {
  PackedFormat format = PackedFormat::bf16;  ///< fp8_e4m3 or bf16
  uint32_t rows = 0;                         ///< multiple of 16
  uint32_t k = 0;                            ///< multiple of 32

  bool is_fp8() const { return format == PackedFormat::fp8_e4m3; }
  uint32_t tile_k() const { return is_fp8() ? kCudaFp8TileK : kCudaBf16TileK; }
  uint32_t tile_bytes() const { return is_fp8() ? kCudaFp8TileBytes : kCudaBf16TileBytes; }
  uint32_t num_row_groups() const { return rows / kTileRows; }
  uint32_t tiles_per_group() const { return (k + tile_k() - 1) / tile_k(); }
  uint64_t group_bytes() const { return uint64_t{tiles_per_group()} * tile_bytes(); }
  uint64_t bytes() const { return num_row_groups() * group_bytes(); }
};

/// Packs one group of 16 rows; writes all `group_bytes()`. Rows as in pack.h.
void pack_cuda_dense_rows(const CudaDenseShape& shape, std::span<const PackRow, kTileRows> rows,
                          uint8_t* out);

/// The inverse of `pack_cuda_dense_rows` for row `row` of a matrix at `data`, written from the
/// definition in cuda_dense_tiles.h, element by element. k is padded to whole tiles.
UnpackedRow unpack_cuda_dense_row(const CudaDenseShape& shape, const uint8_t* data, uint32_t row);

/// The rows of row group `group`: those that `job` has for the CPU, but 8 of the first source and
/// 8 of the second where row groups alternate, so that one group yields 8 columns of a gated MLP.
std::array<RowRef, kTileRows> cuda_dense_group_rows(const PackJob& job, uint32_t group);

/// The packed form of `columns` of `job`: of all, or a rank's share.
/// @throws Error{unsupported_shape} for other formats and for shapes that do not fit the layout
CudaDenseShape cuda_dense_shape(const PackJob& job, ColumnSlice columns);
inline CudaDenseShape cuda_dense_shape(const PackJob& job) {
  return cuda_dense_shape(job, ColumnSlice::all(job.sources[0]));
}

/// Packs one group of 16 rows of `columns`, which may be any of the sources', at `out`.
/// @throws as pack_cuda_dense_group
void pack_cuda_dense_refs(const PackJob& job, ColumnSlice columns, const CudaDenseShape& shape,
                          const std::array<RowRef, kTileRows>& refs, uint8_t* out);

/// Packs row group `group` of `columns` at `out`.
/// @throws Error{bad_format} for NaN and infinite codes or scales and negative scales
void pack_cuda_dense_group(const PackJob& job, ColumnSlice columns, const CudaDenseShape& shape,
                           uint32_t group, uint8_t* out);
inline void pack_cuda_dense_group(const PackJob& job, const CudaDenseShape& shape, uint32_t group,
                                  uint8_t* out) {
  pack_cuda_dense_group(job, ColumnSlice::all(job.sources[0]), shape, group, out);
}

}  // namespace mimo_rt
