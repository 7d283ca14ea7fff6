// Binds the packer to the tensors of a checkpoint: row order, conversions, checks.
#include "weights/pack.h"

#include "checkpoint/scan.h"
#include "core/checks.h"
#include "core/numeric.h"
#include "core/text.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Weights.load";

bool is_plain(const MatrixSource& source) { return source.format == WeightFormat::plain; }

template <typename T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);  // the bytes of a tensor may be unaligned
  return value;
}

float f16_to_f32(uint16_t bits) {
  const uint32_t sign = uint32_t{bits} >> 15 << 31;
  const uint32_t exponent = (bits >> 10) & 31u, mantissa = bits & 1023u;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

float plain_to_f32(DType dtype, const std::byte* data, uint64_t index) {
  switch (dtype) {
    case DType::f32: return load<float>(data + index * 4);
    case DType::bf16: return bf16_to_f32(load<uint16_t>(data + index * 2));
    case DType::f16: return f16_to_f32(load<uint16_t>(data + index * 2));
    default: fail(ErrorCode::internal, kWhere, dtype_name(dtype), " is not a plain type");
  }
}

/// Converts one plain row to `format` (bf16 or f32) without changing a value.
void convert_row(const MatrixSource& source, uint32_t row, PackedFormat format, std::byte* out) {
  const std::byte* data = source.row_data(row).data();
  const DType dtype = source.weight->dtype;
  for (uint32_t k = 0; k < source.k; ++k) {
    const float value = plain_to_f32(dtype, data, k);
    const auto bits = std::bit_cast<uint32_t>(value);
    if (format == PackedFormat::f32) {
      std::memcpy(out + uint64_t{k} * 4, &bits, 4);
      continue;
    }
    // `fits_bf16` chose the format; a map shows what others write to the file since then.
    MIMO_RT_CHECK((bits & 0xffffu) == 0 || value != value, io, kWhere, "tensor ",
                  printable(source.weight->name), " of ", printable(source.weight->file_name),
                  ", element ", source.stored_row(row) * source.k + k,
                  ": expected a value that BF16 holds, as when it was read first, got ", value,
                  ". The file changed while it was loaded: load it again.");
    const auto high = static_cast<uint16_t>(bits >> 16);
    std::memcpy(out + uint64_t{k} * 2, &high, 2);
  }
}

/// The type whose bytes a packed matrix holds.
DType stored_dtype(PackedFormat format) {
  return format == PackedFormat::bf16 ? DType::bf16 : DType::f32;
}

/// Scales are few; the loop stays simple.
void check_scales(const MatrixSource& source, uint32_t row) {
  const std::span<const std::byte> scales = source.row_scales(row);
  const uint64_t first = source.scale_row(row) * source.scale_cols();
  if (source.format == WeightFormat::mxfp4)
    return check_finite(*source.scale, DType::e8m0, scales, first);
  check_finite(*source.scale, DType::f32, scales, first);
  for (uint64_t i = 0; i < source.scale_cols(); ++i) {
    const auto scale = load<float>(scales.data() + i * 4);
    MIMO_RT_CHECK(scale >= 0.0f, bad_format, kWhere, "tensor ", printable(source.scale->name),
                  " of ", printable(source.scale->file_name), ", element ", first + i,
                  ": expected a scale >= 0, got ", scale);
  }
}

/// `pack_rows` saw a code that is not finite: says which.
void report_non_finite(const PackJob& job, std::span<const RowRef, kTileRows> refs) {
  for (const RowRef& ref : refs) {
    if (ref.row == RowRef::kPadding) continue;
    const MatrixSource& source = job.sources[ref.source_idx];
    const uint64_t first = source.stored_row(ref.row) * source.k;
    check_finite(*source.weight, source.weight->dtype, source.row_data(ref.row), first);
  }
}

uint32_t qkv_source_row(const QkvTile& tile, const LayerConfig& layer, uint32_t row) {
  const int32_t element = qkv_tile_element(tile, layer, row);
  if (element < 0) return RowRef::kPadding;
  const bool is_v = tile.part == QkvTile::Part::v;
  return tile.head_idx * (is_v ? layer.v_head_dim : layer.qk_head_dim) +
         static_cast<uint32_t>(element);
}

RowRef stacked_row(const std::vector<MatrixSource>& sources, uint32_t row) {
  for (uint32_t i = 0; i < sources.size(); ++i) {
    if (row < sources[i].rows) return {i, row};
    row -= sources[i].rows;
  }
  return {};
}

}  // namespace

uint32_t PackJob::packed_rows() const {
  if (order == RowOrder::qkv) return static_cast<uint32_t>(tiles->size()) * kTileRows;
  if (order == RowOrder::stacked) {
    uint32_t rows = 0;
    for (const MatrixSource& source : sources) rows += source.rows;
    return round_up(rows, kTileRows);
  }
  return round_up(sources[0].rows, kTileRows) * static_cast<uint32_t>(sources.size());
}

std::array<RowRef, kTileRows> PackJob::group_rows(uint32_t group) const {
  std::array<RowRef, kTileRows> refs;
  const auto num_sources = static_cast<uint32_t>(sources.size());
  for (uint32_t i = 0; i < kTileRows; ++i) {
    if (order == RowOrder::qkv) {
      const QkvTile& tile = (*tiles)[group];
      refs[i] = {static_cast<uint32_t>(tile.part), qkv_source_row(tile, *layer, i)};
      continue;
    }
    if (order == RowOrder::stacked) {
      refs[i] = stacked_row(sources, group * kTileRows + i);
      continue;
    }
    const uint32_t row = group / num_sources * kTileRows + i;
    refs[i].source_idx = group % num_sources;
    if (row < sources[refs[i].source_idx].rows) refs[i].row = row;
  }
  return refs;
}

PackedFormat packed_format(const PackJob& job) {
  const MatrixSource& first = job.sources[0];
  bool is_one_dtype = true;
  for (const MatrixSource& source : job.sources) {
    MIMO_RT_CHECK(source.format == first.format, unsupported_shape, kWhere, "tensors ",
                  printable(first.weight->name), " and ", printable(source.weight->name),
                  ": expected both quantised alike or both plain");
    is_one_dtype &= source.weight->dtype == first.weight->dtype;
  }
  if (first.format == WeightFormat::mxfp4) return PackedFormat::mxfp4;
  if (first.format == WeightFormat::fp8_block) {
    MIMO_RT_CHECK(first.scale_block_cols == kTileK, unsupported_shape, kWhere, "tensor ",
                  printable(first.scale->name), ": expected scale blocks of ", kTileK,
                  " columns, got ", first.scale_block_cols);
    return PackedFormat::fp8_e4m3;
  }
  // F32 holds every plain value; BF16 only its own.
  return is_one_dtype && first.weight->dtype == DType::bf16 ? PackedFormat::bf16
                                                            : PackedFormat::f32;
}

bool fits_bf16(const MatrixSource& source, uint32_t row) {
  const std::byte* data = source.row_data(row).data();
  const DType dtype = source.weight->dtype;
  uint32_t bits = 0;
  if (dtype == DType::f32)  // a loop without branches runs as fast as memory
    for (uint32_t k = 0; k < source.k; ++k) bits |= load<uint32_t>(data + uint64_t{k} * 4);
  else
    for (uint32_t k = 0; k < source.k; ++k)
      bits |= std::bit_cast<uint32_t>(plain_to_f32(dtype, data, k));
  return (bits & 0xffffu) == 0;
}

void pack_row_group(const PackJob& job, const PackedMatrix& matrix, uint32_t group, uint8_t* out,
                    PackScratch& scratch) {
  const std::array<RowRef, kTileRows> refs = job.group_rows(group);
  const uint32_t stored_k = job.sources[0].k;
  const bool is_wide = matrix.format == PackedFormat::f32;
  const uint64_t converted_bytes = uint64_t{stored_k} * (is_wide ? 4 : 2);
  std::array<PackRow, kTileRows> rows;
  const std::byte* checked_scales = nullptr;  // rows of an FP8 block share them
  for (uint32_t i = 0; i < kTileRows; ++i) {
    if (refs[i].row == RowRef::kPadding) continue;
    const MatrixSource& source = job.sources[refs[i].source_idx];
    rows[i].codes = source.row_data(refs[i].row).data();
    if (!is_plain(source)) {
      rows[i].scales = source.row_scales(refs[i].row).data();
      if (rows[i].scales != checked_scales) check_scales(source, refs[i].row);
      checked_scales = rows[i].scales;
    } else if (source.weight->dtype != stored_dtype(matrix.format)) {
      scratch.resize(std::max<uint64_t>(scratch.size(), converted_bytes * kTileRows));
      std::byte* converted = scratch.data() + converted_bytes * i;
      convert_row(source, refs[i].row, matrix.format, converted);
      rows[i].codes = converted;
    }
  }
  if (pack_rows(matrix.format, stored_k, matrix.k, rows, out)) report_non_finite(job, refs);
}

void read_vector(const TensorInfo& tensor, std::span<float> out) {
  check_finite(tensor, tensor.dtype);
  for (uint64_t i = 0; i < out.size(); ++i)
    out[i] = plain_to_f32(tensor.dtype, tensor.data.data(), i);
}

}  // namespace mimo_rt
