// Random weights as a checkpoint holds them, random activations, and their values in float64.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/numeric.h"
#include "weights/pack.h"

namespace mimo_rt::kbench {

/// @throws Error{invalid_argument} for another name than those of PackedFormat
PackedFormat format_of(std::string_view name);

/// 16 rows of `k` random finite weights. Does not move.
class RandomRows {
 public:
  RandomRows(PackedFormat format, uint32_t k, uint64_t seed);
  RandomRows(const RandomRows&) = delete;
  RandomRows& operator=(const RandomRows&) = delete;
  std::span<const PackRow, kTileRows> rows() const { return rows_; }

 private:
  std::vector<std::byte> codes_, scales_;
  std::array<PackRow, kTileRows> rows_;
};

/// The first `k` weights of an unpacked row.
std::vector<double> row_values(PackedFormat format, const UnpackedRow& row, uint32_t k);

/// BF16 values of about unit size.
std::vector<bf16_t> random_bf16(uint64_t count, uint64_t seed);

/// A sum of products in float64, and the sum of their magnitudes, which bounds its rounding.
struct Product {
  double value = 0, magnitude = 0;
};

Product dot(std::span<const double> weights, const bf16_t* x);
Product dot(std::span<const double> weights, std::span<const double> x);

/// Relative error of n roundings of u each.
constexpr double rounding_of(double n, double u) { return n * u / (1 - n * u); }

/// The larger of `worst` and |got - exact| / bound; infinity for a NaN.
double worst_of(double worst, double got, double exact, double bound);

/// Pieces of random data that differ; what is beyond repeats them. A prime: neighbours differ.
inline constexpr uint32_t kDistinctPieces = 251;

/// Up to `count` of 0 .. num - 1, evenly spread, the first and the last among them.
std::vector<uint32_t> spread_over(uint32_t num, uint32_t count);

}  // namespace mimo_rt::kbench
