// From the rows of a checkpoint to the tiles of packed.h, one group of 16 rows at a time.
//
// In every format a tile is a 16 x n matrix of 32-bit words, transposed: word j of all 16 rows is
// one 64-byte vector. A word holds 8 MXFP4 codes, 4 FP8 codes, 2 BF16 values or 1 F32 value in
// stored order; only the nibbles of MXFP4 change places inside it. Packing never changes a code.
#pragma once

#include "checkpoint/tensor_table.h"
#include "weights/packed.h"
#include "weights/qkv_tiles.h"

#include <mimo_rt/config.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace mimo_rt {

/// One row as bytes of the packed format, in stored order. No alignment is needed.
struct PackRow {
  const std::byte* codes = nullptr;   ///< nullptr: a padding row
  const std::byte* scales = nullptr;  ///< per 32 k: E8M0 (mxfp4); per 128 k: F32 (fp8_e4m3)
};

/// Packs one group of rows that hold `stored_k` elements each; the rest up to `k` is padding.
/// Writes all `row_group_bytes(format, k)` bytes. `k`: multiple of 32; MXFP4: `stored_k` too.
/// @return true when a row holds a NaN or infinite code (fp8, bf16, f32; scales are not looked at)
bool pack_rows(PackedFormat format, uint32_t stored_k, uint32_t k,
               std::span<const PackRow, kTileRows> rows, uint8_t* out);

/// One row of a packed matrix, back in stored order, k padded.
struct UnpackedRow {
  std::vector<std::byte> codes;
  std::vector<std::byte> scales;  ///< E8M0 or F32 bytes as in `PackRow`
};

/// The inverse of `pack_rows`, written from the definition in packed.h, element by element.
UnpackedRow unpack_row(const PackedMatrix& matrix, uint32_t row);

/// How the rows of the sources follow each other in the packed matrix.
enum class RowOrder : uint8_t {
  plain,      ///< one source
  alternate,  ///< two sources: 16 rows of the first, 16 rows of the second, and so on
  stacked,    ///< all rows of each source in turn; all sources but the last have whole groups
  qkv,        ///< q, k and v in the order of `qkv_tiles`
};

/// Which stored row a packed row is.
struct RowRef {
  static constexpr uint32_t kPadding = UINT32_MAX;
  uint32_t source_idx = 0;
  uint32_t row = kPadding;  ///< logical row of the source
};

/// A packed matrix to be made from a checkpoint. A view of the checkpoint.
struct PackJob {
  std::vector<MatrixSource> sources;
  RowOrder order = RowOrder::plain;
  const LayerConfig* layer = nullptr;             ///< qkv only
  const std::vector<QkvTile>* tiles = nullptr;    ///< qkv only

  /// Rows of the packed matrix, a multiple of 16.
  uint32_t packed_rows() const;
  std::array<RowRef, kTileRows> group_rows(uint32_t group) const;
};

/// The format that keeps the codes of all sources: that of the checkpoint where they agree; F32 for
/// F16 and for a mix of plain types.
/// @throws Error{unsupported_shape} when quantised and other sources share a matrix
PackedFormat packed_format(const PackJob& job);

/// Whether BF16 holds every value of a row of a plain source exactly. Reads the row.
bool fits_bf16(const MatrixSource& source, uint32_t row);

/// Working memory of one thread: rows that need a conversion.
using PackScratch = std::vector<std::byte>;

/// Packs one row group of `job` into `matrix` (format, k and size already set) at `out`.
/// @throws Error{bad_format} for NaN and infinite codes or scales and negative FP8 scales;
///         Error{io} for F16 or F32 values that a BF16 matrix cannot hold exactly: see `fits_bf16`
void pack_row_group(const PackJob& job, const PackedMatrix& matrix, uint32_t group, uint8_t* out,
                    PackScratch& scratch);

/// Reads a one-dimensional F32, BF16 or F16 tensor. @throws Error{bad_format} for NaN, infinity
void read_vector(const TensorInfo& tensor, std::span<float> out);

}  // namespace mimo_rt
