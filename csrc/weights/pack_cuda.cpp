#include "weights/pack_cuda.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "weights/cuda_expert_source.h"

namespace mimo_rt {
namespace {

constexpr uint32_t kBlockWeights = 32;  // weights that share an E8M0 scale
constexpr uint32_t kWordWeights = 8;    // codes in a 32-bit word
constexpr uint8_t kUnitScale = 127;

/// Where the bits of a code go in the half of a word: bit i of pair p to kBitPlaces[p][i].
constexpr uint8_t kBitPlaces[4][4] = {{6, 7, 8, 15}, {3, 4, 5, 12}, {0, 1, 2, 9}, {13, 10, 11, 14}};

using CodePlaces = std::array<std::array<uint16_t, 16>, 4>;

/// Entry [p][code]: the bits of `code` as pair p.
constexpr CodePlaces make_code_places() {
  CodePlaces places{};
  for (uint32_t pair = 0; pair < 4; ++pair)
    for (uint32_t code = 0; code < 16; ++code)
      for (uint32_t bit = 0; bit < 4; ++bit)
        if (code >> bit & 1)
          places[pair][code] =
              static_cast<uint16_t>(places[pair][code] | 1u << kBitPlaces[pair][bit]);
  return places;
}
constexpr CodePlaces kCodePlaces = make_code_places();

/// One word of the layout from 8 neighbouring codes, two per byte, lower k in the lower nibble.
uint32_t pack_word(const std::byte* codes) {
  uint32_t word = 0;
  for (uint32_t pair = 0; pair < 4; ++pair) {
    const auto byte = std::to_integer<uint32_t>(codes[pair]);
    word |= kCodePlaces[pair][byte & 15] | uint32_t{kCodePlaces[pair][byte >> 4]} << 16;
  }
  return word;
}

uint8_t code_in_word(uint32_t word, uint32_t index) {
  uint32_t code = 0;
  for (uint32_t bit = 0; bit < 4; ++bit)
    code |= (word >> (kBitPlaces[index / 2][bit] + index % 2 * 16) & 1) << bit;
  return static_cast<uint8_t>(code);
}

/// Where word `word` (of 8) of row `row` (of 16) lies in a tile.
constexpr uint32_t word_offset(uint32_t row, uint32_t word) {
  const uint32_t lane = row % 8 * 4 + word / 2;
  return lane * 16 + row / 8 * 8 + word % 2 * 4;
}

constexpr uint32_t scale_offset(uint32_t row, uint32_t block) {
  return kCudaTileCodeBytes + row % 8 * 4 + block * 2 + row / 8;
}

/// Rows of one source for this layout, whose scales have a limit.
PackRow checked_row(const MatrixSource& source, uint32_t row, ColumnSlice columns) {
  return cuda_expert_row(source, row, columns, kCudaMaxE8m0);
}

}  // namespace

void pack_cuda_rows(uint32_t k, std::span<const PackRow, kCudaTileRows> rows, uint8_t* out) {
  for (uint32_t tile_k = 0; tile_k < k; tile_k += kCudaTileK, out += kCudaTileBytes) {
    const uint32_t num_weights = std::min(kCudaTileK, k - tile_k);
    for (uint32_t row = 0; row < kCudaTileRows; ++row) {
      const std::byte* codes = rows[row].codes + tile_k / 2;
      for (uint32_t w = 0; w < kCudaTileK / kWordWeights; ++w) {
        const bool is_stored = w * kWordWeights < num_weights;
        const uint32_t word = is_stored ? pack_word(codes + w * kWordWeights / 2) : 0;
        std::memcpy(out + word_offset(row, w), &word, sizeof word);
      }
      const std::byte* scales = rows[row].scales + tile_k / kBlockWeights;
      for (uint32_t block = 0; block < kCudaTileK / kBlockWeights; ++block) {
        const bool is_stored = block * kBlockWeights < num_weights;
        out[scale_offset(row, block)] =
            is_stored ? std::to_integer<uint8_t>(scales[block]) : kUnitScale;
      }
    }
  }
}

UnpackedRow unpack_cuda_row(const CudaMatrixShape& shape, const uint8_t* data, uint32_t row) {
  UnpackedRow unpacked;
  const uint8_t* tile = data + row / kCudaTileRows * shape.group_bytes();
  for (uint32_t t = 0; t < shape.tiles_per_group(); ++t, tile += kCudaTileBytes) {
    for (uint32_t k = 0; k < kCudaTileK; k += 2) {
      uint32_t word;
      std::memcpy(&word, tile + word_offset(row % kCudaTileRows, k / kWordWeights), sizeof word);
      const uint32_t low = code_in_word(word, k % kWordWeights);
      const uint32_t high = code_in_word(word, k % kWordWeights + 1);
      unpacked.codes.push_back(static_cast<std::byte>(low | high << 4));
    }
    for (uint32_t block = 0; block < kCudaTileK / kBlockWeights; ++block)
      unpacked.scales.push_back(std::byte{tile[scale_offset(row % kCudaTileRows, block)]});
  }
  return unpacked;
}

CudaMatrixShape cuda_gate_up_shape(const MatrixSource& gate, const MatrixSource& up) {
  check_cuda_gate_up(gate, up);
  return {2 * gate.rows, gate.k};
}

CudaMatrixShape cuda_down_shape(const MatrixSource& down, ColumnSlice columns) {
  check_cuda_expert(down, columns, kCudaTileRows);
  return {down.rows, columns.count};
}

void pack_cuda_gate_up(const MatrixSource& gate, const MatrixSource& up, uint8_t* out) {
  const CudaMatrixShape shape = cuda_gate_up_shape(gate, up);
  std::array<PackRow, kCudaTileRows> rows;
  for (uint32_t group = 0; group < shape.num_row_groups(); ++group) {
    for (uint32_t i = 0; i < kCudaTileRows; ++i) {
      const MatrixSource& source = i < kCudaGateUpRows ? gate : up;
      rows[i] = checked_row(source, group * kCudaGateUpRows + i % kCudaGateUpRows,
                            ColumnSlice::all(source));
    }
    pack_cuda_rows(shape.k, rows, out + group * shape.group_bytes());
  }
}

void pack_cuda_down(const MatrixSource& down, ColumnSlice columns, uint8_t* out) {
  const CudaMatrixShape shape = cuda_down_shape(down, columns);
  std::array<PackRow, kCudaTileRows> rows;
  for (uint32_t group = 0; group < shape.num_row_groups(); ++group) {
    for (uint32_t i = 0; i < kCudaTileRows; ++i)
      rows[i] = checked_row(down, group * kCudaTileRows + i, columns);
    pack_cuda_rows(shape.k, rows, out + group * shape.group_bytes());
  }
}

}  // namespace mimo_rt
