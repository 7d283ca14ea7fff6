// Random dense matrices for the CUDA projection kernels, packed and launched, and float64 sums.
#pragma once

#include "cuda/projection_params.h"
#include "expert_fixture.h"
#include "weights/pack_cuda_dense.h"

namespace fixture {

/// A dense matrix, stored and packed.
struct Dense {
  std::unique_ptr<StoredMatrix> matrix;
  CudaDenseShape shape;
  KernelVector<uint8_t> tiles;  // with 16 bytes to spare for alignment

  /// FP8: any codes, scales around 2^-6. BF16: values around 2^-3. `is_exact`: small integers,
  /// times powers of two for FP8. With a multiple of 20 rows scale blocks end inside row groups, as
  /// those of a fused qkv do.
  Dense(PackedFormat format, uint32_t rows, uint32_t k, uint32_t seed, bool is_exact = false)
      : matrix(make_matrix(format, rows, k, seed, rows % 20 == 0 ? 20 : 0)) {
    std::mt19937 random(seed + 1);
    std::normal_distribution<float> normal;
    const bool is_fp8 = format == PackedFormat::fp8_e4m3;
    for (uint32_t i = 0; i < rows * k; ++i) {
      const float value = is_exact ? static_cast<float>(random() % 9) - 4.0f : normal(random) / 8;
      const uint16_t bits = f32_to_bf16(value);
      constexpr uint8_t kIntegers[5] = {0x00, 0x38, 0x40, 0x44, 0x48};  // 0 .. 4
      const uint8_t code = static_cast<uint8_t>(kIntegers[random() % 5] | random() % 2 << 7);
      if (is_fp8 && is_exact) matrix->weight_data()[i] = std::byte{code};
      if (!is_fp8) std::memcpy(matrix->weight_data() + i * 2, &bits, 2);
    }
    for (uint32_t i = 0; i * 4 + 1 < matrix->scale_bytes.size(); ++i) {
      const float scale = is_exact ? std::ldexp(1.0f, static_cast<int>(random() % 3))
                                   : (1.0f + static_cast<float>(random() % 64) / 64) / 64;
      std::memcpy(matrix->scale_data() + i * 4, &scale, 4);
    }
    pack();
  }

  void pack() {
    const PackJob job{{matrix->source}};
    shape = cuda_dense_shape(job);
    pack(job);
  }
  void pack(const PackJob& job) {
    shape = cuda_dense_shape(job);
    tiles.resize(shape.bytes() + 16);
    for (uint32_t group = 0; group < shape.num_row_groups(); ++group)
      pack_cuda_dense_group(job, shape, group,
                            Experts::aligned(tiles) + group * shape.group_bytes());
  }

  uint32_t rows() const { return matrix->source.rows; }
  uint32_t k() const { return matrix->source.k; }

  double value(uint32_t row, uint32_t col) const {
    const MatrixSource& source = matrix->source;
    const std::byte* data = source.row_data(row).data();
    if (!shape.is_fp8()) {
      uint16_t bits;
      std::memcpy(&bits, data + col * 2, 2);
      return double{bf16_to_f32(bits)};
    }
    float scale;
    std::memcpy(&scale, source.row_scales(row).data() + col / 128 * 4, 4);
    return double{fp8_e4m3_to_f32(std::to_integer<uint8_t>(data[col]))} * double{scale};
  }
  Product dot(uint32_t row, const double* a) const {
    Product product;
    for (uint32_t i = 0; i < k(); ++i) {
      product.value += value(row, i) * a[i];
      product.magnitude += std::abs(value(row, i) * a[i]);
    }
    return product;
  }

  cuda::ProjectionParams params(const AlignedRows<bf16_t>& x, uint32_t num_tokens) {
    cuda::ProjectionParams params;
    params.tiles = Experts::aligned(tiles);
    params.x = {x.data, x.stride};
    params.num_tokens = num_tokens;
    params.rows = shape.rows;
    params.k = shape.k;
    params.format =
        shape.is_fp8() ? cuda::ProjectionFormat::fp8_e4m3 : cuda::ProjectionFormat::bf16;
    params.num_columns = rows();
    return params;
  }
};

/// Rows in float64.
inline std::vector<double> widened(const AlignedRows<bf16_t>& x, uint32_t num_rows, uint32_t k) {
  std::vector<double> rows;
  for (uint32_t r = 0; r < num_rows; ++r)
    for (uint32_t i = 0; i < k; ++i) rows.push_back(double{bf16_to_f32(x.at(r, i))});
  return rows;
}

/// n roundings of u each: n u / (1 - n u).
inline double gamma_of(double n, double u) { return n * u / (1 - n * u); }

/// Random values in the first `num_columns`; what is beyond keeps its NaN and may not be used.
inline void fill_rows(AlignedRows<bf16_t>& rows, uint32_t num_columns, uint32_t seed,
                      bool is_integer = false) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  for (uint32_t r = 0; r < rows.rows; ++r)
    for (uint32_t i = 0; i < num_columns; ++i)
      rows.at(r, i) =
          f32_to_bf16(is_integer ? static_cast<float>(rng() % 9) - 4.0f : normal(rng));
}

}  // namespace fixture
