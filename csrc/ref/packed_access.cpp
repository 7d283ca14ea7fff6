#include "ref/packed_access.h"

#include "core/numeric.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace mimo_rt::ref {
namespace {

template <typename T>
T load(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

std::array<double, 256> make_fp8_table() {
  std::array<double, 256> table{};
  for (uint32_t bits = 0; bits < 256; ++bits)
    table[bits] = fp8_e4m3_to_f32(static_cast<uint8_t>(bits));
  return table;
}

double fp8_value(uint8_t bits) {
  static const std::array<double, 256> kTable = make_fp8_table();
  return kTable[bits];
}

/// One weight of a tile of `num_blocks` blocks; offsets as drawn in csrc/weights/packed.h.
template <PackedFormat kFormat>
double tile_weight(const uint8_t* tile, uint32_t num_blocks, uint32_t lane, uint32_t k) {
  if constexpr (kFormat == PackedFormat::mxfp4) {
    const uint32_t byte = tile[k / 8 * 64 + lane * 4 + k % 4];
    const uint8_t code = static_cast<uint8_t>(k % 8 < 4 ? byte & 15u : byte >> 4);
    const uint8_t scale = tile[num_blocks * 256 + k / kBlockK * kTileRows + lane];
    return double{fp4_e2m1_to_f32(code)} * double{e8m0_to_f32(scale)};
  } else if constexpr (kFormat == PackedFormat::fp8_e4m3) {
    const uint8_t bits = tile[k / 4 * 64 + lane * 4 + k % 4];
    return fp8_value(bits) * double{load<float>(tile + num_blocks * 512 + lane * 4)};
  } else if constexpr (kFormat == PackedFormat::bf16) {
    return double{bf16_to_f32(load<bf16_t>(tile + k / 2 * 64 + lane * 4 + k % 2 * 2))};
  } else {
    return double{load<float>(tile + k * 64 + lane * 4)};
  }
}

template <PackedFormat kFormat>
void unpack(const PackedMatrix& matrix, uint32_t group, double* out) {
  const uint8_t* tile = matrix.row_group(group);
  for (uint32_t k_begin = 0; k_begin < matrix.k; k_begin += kTileK) {
    const uint32_t num_k = std::min(kTileK, matrix.k - k_begin);
    for (uint32_t k = 0; k < num_k; ++k)
      for (uint32_t lane = 0; lane < kTileRows; ++lane)
        *out++ = tile_weight<kFormat>(tile, num_k / kBlockK, lane, k);
    tile += tile_bytes(kFormat, num_k / kBlockK);
  }
}

template <PackedFormat kFormat>
double weight_at(const PackedMatrix& matrix, uint32_t row, uint32_t k) {
  const uint32_t tile_idx = k / kTileK;
  const uint32_t num_blocks = std::min(kTileK, matrix.k - tile_idx * kTileK) / kBlockK;
  const uint8_t* tile =
      matrix.row_group(row / kTileRows) + uint64_t{tile_idx} * tile_bytes(kFormat, 4);
  return tile_weight<kFormat>(tile, num_blocks, row % kTileRows, k % kTileK);
}

}  // namespace

double packed_weight(const PackedMatrix& matrix, uint32_t row, uint32_t k) {
  switch (matrix.format) {
    case PackedFormat::mxfp4: return weight_at<PackedFormat::mxfp4>(matrix, row, k);
    case PackedFormat::fp8_e4m3: return weight_at<PackedFormat::fp8_e4m3>(matrix, row, k);
    case PackedFormat::bf16: return weight_at<PackedFormat::bf16>(matrix, row, k);
    case PackedFormat::f32: return weight_at<PackedFormat::f32>(matrix, row, k);
  }
  return 0.0;
}

void unpack_row_group(const PackedMatrix& matrix, uint32_t group, double* out) {
  switch (matrix.format) {
    case PackedFormat::mxfp4: return unpack<PackedFormat::mxfp4>(matrix, group, out);
    case PackedFormat::fp8_e4m3: return unpack<PackedFormat::fp8_e4m3>(matrix, group, out);
    case PackedFormat::bf16: return unpack<PackedFormat::bf16>(matrix, group, out);
    case PackedFormat::f32: return unpack<PackedFormat::f32>(matrix, group, out);
  }
}

}  // namespace mimo_rt::ref
