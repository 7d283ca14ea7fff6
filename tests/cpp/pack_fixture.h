// Random stored matrices, as a checkpoint would hold them, for tests of the packer.
#pragma once

#include "check.h"
#include "checkpoint/tensor_table.h"
#include "weights/packed.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace fixture {

using namespace mimo_rt;

/// A stored matrix with its bytes. The data begins at an odd address: nothing may need alignment.
struct StoredMatrix {
  std::string weight_bytes, scale_bytes;
  TensorInfo weight, scale;
  MatrixSource source;

  std::byte* weight_data() { return reinterpret_cast<std::byte*>(weight_bytes.data()) + 1; }
  std::byte* scale_data() { return reinterpret_cast<std::byte*>(scale_bytes.data()) + 1; }
};

inline uint64_t stored_row_bytes(PackedFormat format, uint64_t k) {
  switch (format) {
    case PackedFormat::mxfp4: return k / 2;
    case PackedFormat::fp8_e4m3: return k;
    case PackedFormat::bf16: return k * 2;
    case PackedFormat::f32: return k * 4;
  }
  return 0;
}

/// Random finite codes of `format` for `count` weights.
inline std::string random_codes(PackedFormat format, uint64_t count, std::mt19937& random) {
  std::string bytes(stored_row_bytes(format, count), '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  const auto clear_bit = [&](uint64_t i, int mask) {
    bytes[i] = static_cast<char>(bytes[i] & mask);
  };
  for (uint64_t i = 0; i < bytes.size(); ++i) {
    if (format == PackedFormat::fp8_e4m3 && (bytes[i] & 0x7f) == 0x7f) clear_bit(i, ~1);
    if (format == PackedFormat::bf16 && i % 2 == 1) clear_bit(i, ~0x10);
    if (format == PackedFormat::f32 && i % 4 == 3) clear_bit(i, ~0x10);
  }
  return bytes;
}

/// A matrix of `rows` x `k` in the stored form of `format`. FP8 scale blocks restart every
/// `scale_run_rows` rows (0: never).
inline std::unique_ptr<StoredMatrix> make_matrix(PackedFormat format, uint32_t rows, uint32_t k,
                                                 uint32_t seed, uint32_t scale_run_rows = 0) {
  std::mt19937 random(seed);
  auto matrix = std::make_unique<StoredMatrix>();
  MatrixSource& source = matrix->source;
  matrix->weight_bytes = "?" + random_codes(format, uint64_t{rows} * k, random);
  matrix->weight.name = "w";
  matrix->weight.file_name = "f";
  matrix->weight.dtype = format == PackedFormat::mxfp4      ? DType::u8
                         : format == PackedFormat::fp8_e4m3 ? DType::fp8_e4m3
                         : format == PackedFormat::bf16     ? DType::bf16
                                                            : DType::f32;
  matrix->weight.shape = {rows, format == PackedFormat::mxfp4 ? k / 2 : k};
  matrix->weight.data = {matrix->weight_data(), matrix->weight_bytes.size() - 1};
  source.weight = &matrix->weight;
  source.rows = rows;
  source.k = k;
  source.piece_rows = source.piece_stride = rows;
  source.scale_run_rows = scale_run_rows ? scale_run_rows : rows;
  if (format == PackedFormat::mxfp4) {
    source.format = WeightFormat::mxfp4;
    source.scale_block_cols = 32;
    matrix->scale_bytes = "?";
    for (uint32_t i = 0; i < rows * (k / 32); ++i)
      matrix->scale_bytes += static_cast<char>(random() % 255);
  } else if (format == PackedFormat::fp8_e4m3) {
    source.format = WeightFormat::fp8_block;
    source.scale_block_rows = source.scale_block_cols = 128;
    const uint64_t run = source.scale_run_rows;
    const uint64_t num_scales = rows / run * ((run + 127) / 128) * source.scale_cols();
    matrix->scale_bytes = "?" + std::string(num_scales * 4, '\0');
    for (uint64_t i = 0; i < num_scales; ++i) {
      const float scale = static_cast<float>(random() % 1000 + i * 1000);
      std::memcpy(matrix->scale_bytes.data() + 1 + i * 4, &scale, 4);
    }
  }
  if (source.format != WeightFormat::plain) {
    matrix->scale.name = "s";
    matrix->scale.file_name = "f";
    matrix->scale.dtype = source.format == WeightFormat::mxfp4 ? DType::u8 : DType::f32;
    matrix->scale.data = {matrix->scale_data(), matrix->scale_bytes.size() - 1};
    source.scale = &matrix->scale;
  }
  return matrix;
}

/// The bytes as they are, to be compared.
inline std::string text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Packs over garbage, with a guard behind: every byte of the result must be written, none more.
template <typename Shape, typename Pack>
std::vector<uint8_t> pack_guarded(const Shape& shape, const Pack& pack) {
  std::vector<uint8_t> packed(shape.bytes() + 16, 0xa5), other(shape.bytes() + 16, 0x5a);
  pack(packed.data());
  pack(other.data());
  CHECK(std::equal(packed.begin(), packed.end() - 16, other.begin()));
  for (uint32_t i = 0; i < 16; ++i) CHECK_EQ(packed[shape.bytes() + i], 0xa5);
  packed.resize(shape.bytes());
  return packed;
}

}  // namespace fixture
