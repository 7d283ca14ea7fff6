// A model of CUTLASS's products (cuda/gemm/block_scaled.h) that reads the same bytes on the host.
#pragma once

#include <vector>

#include "core/numeric.h"
#include "cuda/gemm/block_scaled.h"
#include "weights/pack_cuda_mx.h"

namespace fixture {

using namespace mimo_rt;

/// Rounded slots, read by the definition of the layout.
struct MxSlots {
  const uint8_t *codes, *scales;
  uint32_t padded_k;

  uint8_t scale(uint32_t row, uint32_t k) const {
    const uint32_t atom = row / 128 * (padded_k / 128) + k / 128;
    return scales[atom * 512 + row % 32 * 16 + row % 128 / 32 * 4 + k / 32 % 4];
  }
  double value(uint32_t slot, uint32_t row, uint32_t k) const {
    return double{fp8_e4m3_to_f32(codes[uint64_t{slot} * padded_k + k])} *
           double{e8m0_to_f32(scale(row, k))};
  }
};

/// What CUTLASS computes, summed in float64 and rounded once.
inline void multiply_on_host(const cuda::BlockScaledGemm& gemm) {
  const CudaMxShape shape{gemm.rows, gemm.k};
  const MxSlots slots{gemm.codes, gemm.scales, gemm.k};
  std::vector<double> weights(uint64_t{gemm.rows} * gemm.k), x(gemm.k);
  for (uint32_t i = 0; i < *gemm.route.num_active; ++i) {
    const uint8_t* matrix = gemm.weights + gemm.route.active_experts[i] * shape.bytes();
    for (uint32_t row = 0; row < gemm.rows; ++row) {
      const UnpackedRow stored = unpack_cuda_mx_row(shape, matrix, row);
      for (uint32_t k = 0; k < gemm.k; ++k) {
        const uint32_t code = std::to_integer<uint32_t>(stored.codes[k / 2]) >> k % 2 * 4 & 15;
        weights[uint64_t{row} * gemm.k + k] =
            double{fp4_e2m1_to_f32(static_cast<uint8_t>(code))} *
            double{e8m0_to_f32(std::to_integer<uint8_t>(stored.scales[k / 32]))};
      }
    }
    const uint32_t begin = gemm.route.slot_begin[i];
    for (uint32_t slot = begin; slot < gemm.route.slot_begin[i + 1]; ++slot) {
      for (uint32_t k = 0; k < gemm.k; ++k)
        x[k] = slots.value(slot, (begin / 128 + i) * 128 + slot - begin, k);
      for (uint32_t row = 0; row < gemm.rows; ++row) {
        double sum = 0;
        for (uint32_t k = 0; k < gemm.k; ++k) sum += weights[uint64_t{row} * gemm.k + k] * x[k];
        gemm.out[uint64_t{slot} * gemm.rows + row] = static_cast<float>(sum);
      }
    }
  }
}

}  // namespace fixture
