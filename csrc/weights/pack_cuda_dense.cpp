#include "weights/pack_cuda_dense.h"

#include <algorithm>
#include <cstring>

#include "checkpoint/scan.h"
#include "core/checks.h"
#include "core/text.h"
#include "weights/cuda_tiles.h"

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Weights.load";
constexpr uint32_t kCodePlaces[4] = {1, 3, 0, 2};  // byte of a word for each of four FP8 codes

/// Where code `k` (of 128) of row `row` lies in an FP8 tile.
constexpr uint32_t fp8_offset(uint32_t row, uint32_t k) {
  const uint32_t chunk = k / 64 * 2 + row / 8, lane = row % 8 * 4 + k % 64 / 16;
  return chunk * kCudaChunkBytes + lane * 16 + k % 16 / 4 * 4 + kCodePlaces[k % 4];
}

/// Where value `k` (of 64) of row `row` lies in a BF16 tile.
constexpr uint32_t bf16_offset(uint32_t row, uint32_t k) {
  const uint32_t chunk = row / 8 * 2 + k % 16 / 8, lane = row % 8 * 4 + k / 16;
  return chunk * kCudaChunkBytes + lane * 16 + k % 8 * 2;
}

constexpr uint32_t scale_offset(uint32_t row) { return kCudaFp8CodeBytes + row * 4; }

/// `num_stored` of the tile's k exist.
void pack_fp8_row(const std::byte* codes, uint32_t num_stored, uint32_t row, uint8_t* tile) {
  for (uint32_t k = 0; k < kCudaFp8TileK; k += 4) {
    uint32_t word = 0;
    for (uint32_t i = 0; i < 4 && k < num_stored; ++i)
      word |= std::to_integer<uint32_t>(codes[k + i]) << kCodePlaces[i] * 8;
    std::memcpy(tile + fp8_offset(row, k) - kCodePlaces[0], &word, sizeof word);
  }
}

void pack_bf16_row(const std::byte* values, uint32_t num_stored, uint32_t row, uint8_t* tile) {
  for (uint32_t k = 0; k < kCudaBf16TileK; k += 8) {
    uint8_t* place = tile + bf16_offset(row, k);
    if (k < num_stored)
      std::memcpy(place, values + k * 2, 16);
    else
      std::memset(place, 0, 16);
  }
}

void check_source(const MatrixSource& source, PackedFormat format, ColumnSlice columns) {
  const auto name = printable(source.weight->name);
  MIMO_RT_CHECK(format == PackedFormat::fp8_e4m3 || format == PackedFormat::bf16,
                unsupported_shape, kWhere, "tensor ", name,
                ": expected FP8 or BF16 for a dense matrix of the CUDA engine");
  MIMO_RT_CHECK(columns.count % kBlockK == 0 && columns.count != 0, unsupported_shape, kWhere,
                "tensor ", name, ": expected a multiple of ", kBlockK,
                " columns for the CUDA engine, got ", columns.count);
  const uint32_t step = format == PackedFormat::fp8_e4m3 ? kCudaFp8TileK : kBlockK;
  MIMO_RT_CHECK(columns.first % step == 0, unsupported_shape, kWhere, "tensor ", name,
                ": expected a rank's columns to begin at a multiple of ", step, ", got ",
                columns.first, ". Use fewer ranks.");
}

/// The codes of `columns`, and their scales where the source has them.
PackRow checked_row(const MatrixSource& source, uint32_t row, ColumnSlice columns) {
  const uint64_t width = source.row_bytes() / source.k;  // bytes of a code
  const std::span<const std::byte> codes =
      source.row_data(row).subspan(columns.first * width, columns.count * width);
  check_finite(*source.weight, source.weight->dtype, codes,
               source.stored_row(row) * source.k + columns.first);
  if (source.format == WeightFormat::plain) return {codes.data(), nullptr};
  const uint64_t first_block = columns.first / kCudaFp8TileK;
  const uint64_t num_blocks = (columns.count + kCudaFp8TileK - 1) / kCudaFp8TileK;
  const std::span<const std::byte> scales =
      source.row_scales(row).subspan(first_block * sizeof(float), num_blocks * sizeof(float));
  const uint64_t first = source.scale_row(row) * source.scale_cols() + first_block;
  check_finite(*source.scale, DType::f32, scales, first);
  for (uint64_t i = 0; i < num_blocks; ++i) {
    float scale;
    std::memcpy(&scale, scales.data() + i * sizeof scale, sizeof scale);
    MIMO_RT_CHECK(scale >= 0.0f, bad_format, kWhere, "tensor ", printable(source.scale->name),
                  " of ", printable(source.scale->file_name), ", element ", first + i,
                  ": expected a scale >= 0, got ", scale);
  }
  return {codes.data(), scales.data()};
}

}  // namespace

void pack_cuda_dense_rows(const CudaDenseShape& shape, std::span<const PackRow, kTileRows> rows,
                          uint8_t* out) {
  for (uint32_t t = 0; t < shape.tiles_per_group(); ++t, out += shape.tile_bytes()) {
    const uint32_t k_begin = t * shape.tile_k();
    const uint32_t stored = std::min(shape.tile_k(), shape.k - k_begin);
    for (uint32_t row = 0; row < kTileRows; ++row) {
      const bool is_stored = rows[row].codes != nullptr;
      const uint64_t offset = uint64_t{k_begin} * (shape.is_fp8() ? 1 : 2);
      const std::byte* codes = is_stored ? rows[row].codes + offset : nullptr;
      if (!shape.is_fp8()) {
        pack_bf16_row(codes, is_stored ? stored : 0, row, out);
        continue;
      }
      pack_fp8_row(codes, is_stored ? stored : 0, row, out);
      float scale = 1.0f;
      if (is_stored) std::memcpy(&scale, rows[row].scales + t * sizeof scale, sizeof scale);
      std::memcpy(out + scale_offset(row), &scale, sizeof scale);
    }
  }
}

UnpackedRow unpack_cuda_dense_row(const CudaDenseShape& shape, const uint8_t* data, uint32_t row) {
  UnpackedRow unpacked;
  const uint8_t* tile = data + row / kTileRows * shape.group_bytes();
  const uint32_t lane_row = row % kTileRows;
  const auto push = [](std::vector<std::byte>& out, const uint8_t* bytes, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) out.push_back(std::byte{bytes[i]});
  };
  for (uint32_t t = 0; t < shape.tiles_per_group(); ++t, tile += shape.tile_bytes()) {
    for (uint32_t k = 0; k < shape.tile_k(); ++k)
      if (shape.is_fp8())
        push(unpacked.codes, tile + fp8_offset(lane_row, k), 1);
      else
        push(unpacked.codes, tile + bf16_offset(lane_row, k), 2);
    if (shape.is_fp8()) push(unpacked.scales, tile + scale_offset(lane_row), 4);
  }
  return unpacked;
}

std::array<RowRef, kTileRows> cuda_dense_group_rows(const PackJob& job, uint32_t group) {
  if (job.order != RowOrder::alternate) return job.group_rows(group);
  std::array<RowRef, kTileRows> refs;
  for (uint32_t i = 0; i < kTileRows; ++i) {
    refs[i].source_idx = i / kCudaGateUpRows;
    const uint32_t row = group * kCudaGateUpRows + i % kCudaGateUpRows;
    if (row < job.sources[refs[i].source_idx].rows) refs[i].row = row;
  }
  return refs;
}

CudaDenseShape cuda_dense_shape(const PackJob& job, ColumnSlice columns) {
  const CudaDenseShape shape{packed_format(job), job.packed_rows(), columns.count};
  const uint32_t k = job.sources[0].k;
  for (const MatrixSource& source : job.sources) {
    check_source(source, shape.format, columns);
    MIMO_RT_CHECK(source.k == k, shape_mismatch, kWhere, "tensors ",
                  printable(job.sources[0].weight->name), " and ", printable(source.weight->name),
                  ": expected rows of the same length, got ", k, " and ", source.k);
  }
  return shape;
}

void pack_cuda_dense_group(const PackJob& job, ColumnSlice columns, const CudaDenseShape& shape,
                           uint32_t group, uint8_t* out) {
  pack_cuda_dense_refs(job, columns, shape, cuda_dense_group_rows(job, group), out);
}

void pack_cuda_dense_refs(const PackJob& job, ColumnSlice columns, const CudaDenseShape& shape,
                          const std::array<RowRef, kTileRows>& refs, uint8_t* out) {
  std::array<PackRow, kTileRows> rows;
  for (uint32_t i = 0; i < kTileRows; ++i)
    if (refs[i].row != RowRef::kPadding)
      rows[i] = checked_row(job.sources[refs[i].source_idx], refs[i].row, columns);
  pack_cuda_dense_rows(shape, rows, out);
}

}  // namespace mimo_rt
