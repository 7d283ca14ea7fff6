// A slow and obvious packer: every weight is placed by the formulas of csrc/weights/packed.h, one
// at a time.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "core/numeric.h"
#include "weights/packed.h"

namespace pack_reference {

using mimo_rt::PackedFormat;

/// Codes of a matrix and what they mean. `scale` has one entry per (row, block of 32 k).
struct Matrix {
  PackedFormat format = PackedFormat::bf16;
  uint32_t rows = 0, k = 0;
  std::vector<uint32_t> codes;    ///< [rows, k]: 4-, 8-, 16- or 32-bit codes
  std::vector<uint8_t> e8m0;      ///< [rows, k / 32], mxfp4
  std::vector<float> tile_scale;  ///< [rows, tiles of 128 k], fp8

  float value(uint32_t row, uint32_t col) const {
    const uint32_t code = codes[size_t{row} * k + col];
    switch (format) {
      case PackedFormat::mxfp4:
        return mimo_rt::fp4_e2m1_to_f32(static_cast<uint8_t>(code));
      case PackedFormat::fp8_e4m3:
        return mimo_rt::fp8_e4m3_to_f32(static_cast<uint8_t>(code));
      case PackedFormat::bf16:
        return mimo_rt::bf16_to_f32(static_cast<uint16_t>(code));
      default:
        return std::bit_cast<float>(code);
    }
  }
  float scale(uint32_t row, uint32_t col) const {
    if (format == PackedFormat::mxfp4)
      return mimo_rt::e8m0_to_f32(e8m0[size_t{row} * (k / 32) + col / 32]);
    if (format == PackedFormat::fp8_e4m3)
      return tile_scale[size_t{row} * ((k + 127) / 128) + col / 128];
    return 1.0f;
  }
};

/// Byte offset of weight (row, col)'s code in the packed matrix; `shift` is its bit position in
/// that byte.
inline uint64_t code_offset(const Matrix& m, uint32_t row, uint32_t col, uint32_t& shift) {
  const uint64_t tile = row / 16 * mimo_rt::row_group_bytes(m.format, m.k) +
                        uint64_t{col / 128} * mimo_rt::tile_bytes(m.format, 4);
  const uint32_t r = row % 16, c = col % 128;
  shift = 0;
  switch (m.format) {
    case PackedFormat::mxfp4:
      shift = c % 8 < 4 ? 0 : 4;
      return tile + c / 8 * 64 + r * 4 + c % 4;
    case PackedFormat::fp8_e4m3:
      return tile + c / 4 * 64 + r * 4 + c % 4;
    case PackedFormat::bf16:
      return tile + c / 2 * 64 + r * 4 + c % 2 * 2;
    default:
      return tile + c * 64 + r * 4;
  }
}

/// Fills `out` (64-byte aligned, m.rows / 16 * row_group_bytes).
inline void pack(const Matrix& m, uint8_t* out) {
  std::memset(out, 0, m.rows / 16 * mimo_rt::row_group_bytes(m.format, m.k));
  for (uint32_t row = 0; row < m.rows; ++row)
    for (uint32_t col = 0; col < m.k; ++col) {
      uint32_t shift;
      uint8_t* code = out + code_offset(m, row, col, shift);
      const uint32_t bits = m.codes[size_t{row} * m.k + col];
      if (m.format == PackedFormat::mxfp4)
        code[0] = static_cast<uint8_t>(code[0] | bits << shift);
      else
        std::memcpy(code, &bits,
                    m.format == PackedFormat::fp8_e4m3 ? 1
                    : m.format == PackedFormat::bf16   ? 2
                                                       : 4);
    }
  for (uint32_t row = 0; row < m.rows; ++row)
    for (uint32_t col = 0; col < m.k; col += 32) {
      const uint32_t blocks = std::min<uint32_t>(4, (m.k - col / 128 * 128) / 32);
      uint8_t* tile = out + row / 16 * mimo_rt::row_group_bytes(m.format, m.k) +
                      uint64_t{col / 128} * mimo_rt::tile_bytes(m.format, 4);
      if (m.format == PackedFormat::mxfp4)
        tile[blocks * 256 + col % 128 / 32 * 16 + row % 16] =
            m.e8m0[size_t{row} * (m.k / 32) + col / 32];
      const float scale = m.scale(row, col);
      if (m.format == PackedFormat::fp8_e4m3)
        std::memcpy(tile + blocks * 512 + row % 16 * 4, &scale, 4);
    }
}

/// Random weights of about unit size; every code that a checkpoint may hold occurs.
inline Matrix random_matrix(PackedFormat format, uint32_t rows, uint32_t k, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  Matrix m{format, rows, k, std::vector<uint32_t>(size_t{rows} * k), {}, {}};
  for (uint32_t& code : m.codes) {
    if (format == PackedFormat::mxfp4) code = rng() & 15u;
    if (format == PackedFormat::fp8_e4m3) do
        code = rng() & 255u;
      while ((code & 127u) == 127u);
    if (format == PackedFormat::bf16) code = mimo_rt::f32_to_bf16(normal(rng));
    if (format == PackedFormat::f32) code = std::bit_cast<uint32_t>(normal(rng));
  }
  if (format == PackedFormat::mxfp4)
    for (size_t i = 0; i < m.codes.size() / 32; ++i)
      m.e8m0.push_back(static_cast<uint8_t>(119 + rng() % 16));
  if (format == PackedFormat::fp8_e4m3)
    for (size_t i = 0; i < size_t{rows} * ((k + 127) / 128); ++i)
      m.tile_scale.push_back(0.001f + 0.01f * std::abs(normal(rng)));
  return m;
}

}  // namespace pack_reference
