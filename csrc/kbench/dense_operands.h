// What every benchmark of a projection has: a dense matrix and its copies, the rows it is multiplied
// by, and their products in float64.
#pragma once

#include <span>
#include <vector>

#include "cuda/bench_device.h"
#include "kbench/cuda_subject.h"
#include "kbench/random_rows.h"
#include "weights/pack_cuda_dense.h"

namespace mimo_rt::kbench {

class DenseOperands {
 public:
  /// [rows, c.k] of `c.format`, as often as fits into `rotation_bytes`, and c.num_tokens rows of x.
  /// `is_normed`: a norm is fused.
  DenseOperands(const KernelCase& c, uint32_t rows, bool is_normed, uint64_t rotation_bytes,
                uint64_t seed, cuda::BenchDevice& device);

  uint32_t num_places() const { return num_places_; }
  /// All of the call but what becomes of the products.
  cuda::ProjectionParams params() const;
  const uint8_t* tiles(uint32_t place) const { return tiles_ + place * shape_.bytes(); }
  /// One call's bytes and operations.
  void add_work(KernelWork& work) const;

  /// The product of a token's row with one of the matrix, and what the kernel's may be off by.
  Bounded product(uint32_t place, uint32_t token, uint32_t row_idx) const;

 private:
  void upload_weights(uint64_t seed, cuda::BenchDevice& device);

  const CudaDenseShape shape_;
  const uint32_t num_tokens_;
  const bool is_normed_;
  uint32_t num_places_ = 1;
  uint8_t* tiles_ = nullptr;
  std::vector<uint8_t> host_tiles_;  // the distinct groups
  std::vector<double> a_;            // [num_tokens, k] what is multiplied, exactly
  cuda::RowsView<const uint16_t> device_x_;
  const float* device_norm_ = nullptr;
};

/// What may be off in a norm of `k` values: its sum, its root and two products, then BF16.
inline double norm_error(uint32_t k) {
  return kBf16Unit + rounding_of(k / 32 + 16.0, kF32Unit) * 1.01;
}

/// Weights of a norm: about 1.
std::vector<float> norm_weights(uint32_t k, uint64_t seed);
/// The norm of rows of k values in float64.
std::vector<double> normalised(std::span<const bf16_t> rows, std::span<const float> weights);
inline constexpr float kNormEps = 1e-5f;

/// Rounded to BF16 once: what is known to within `before.bound`.
inline Bounded rounded(const Bounded& before) {
  return {before.value,
          before.bound + kBf16Unit * (std::abs(before.value) + before.bound) + 0x1p-120};
}

/// @throws Error{unavailable} for other formats than FP8 and BF16
void check_projection_case(const KernelCase& kernel_case);

}  // namespace mimo_rt::kbench
