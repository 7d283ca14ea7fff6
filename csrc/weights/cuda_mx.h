// MXFP4 expert matrices as the matrix instructions of sm_100a (tcgen05) read them: what lies where.
// For g++ and nvcc. A layout of its own, beside cuda_tiles.h, for the kernels of cuda/expert_mxfp8.h.
//
// A matrix has rows x k weights; k is padded to a multiple of 128 (kCudaMxK), because the copies of
// FP4 codes into shared memory are 128 codes wide. Codes come first, then scales, then the next
// expert:
//
//   codes   [rows, k / 2]  as a checkpoint has them: two per byte, the even k in the lower half
//   scales  atoms of 128 rows x 4 blocks of 32 k, 512 bytes each; those of 128 rows follow each
//           other along k. In an atom, row r and block b lie at
//
//             r % 32 * 16 + r / 32 * 4 + b
//
//           so that a lane's 16 bytes in tensor memory are the scales of rows r, r + 32, r + 64 and
//           r + 96. CUTLASS calls it Sm1xxBlockScaledConfig<32>; tests compare.
//
// Gate and up are one matrix: all rows of gate, then all rows of up. Padding has zero codes and
// scale 2^0; rows beyond the matrix, of which only scales exist, too.
//
// Rows of MXFP8 activations have the same scales: 128 of them to an atom, one byte per code.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MIMO_RT_HOST_DEVICE __host__ __device__
#else
#define MIMO_RT_HOST_DEVICE
#endif

namespace mimo_rt {

inline constexpr uint32_t kCudaMxK = 128;          ///< k is padded to a multiple of this
inline constexpr uint32_t kCudaMxBlock = 32;       ///< k that share a scale
inline constexpr uint32_t kCudaMxScaleRows = 128;  ///< of an atom of scales
inline constexpr uint32_t kCudaMxAtomBytes = 512;
inline constexpr uint8_t kCudaMxUnitScale = 127;

MIMO_RT_HOST_DEVICE constexpr uint32_t cuda_mx_padded_k(uint32_t k) {
  return (k + kCudaMxK - 1) / kCudaMxK * kCudaMxK;
}

/// Scales of `rows` rows of padded k.
MIMO_RT_HOST_DEVICE constexpr uint64_t cuda_mx_scale_bytes(uint32_t rows, uint32_t padded_k) {
  return uint64_t{(rows + kCudaMxScaleRows - 1) / kCudaMxScaleRows} * (padded_k / kCudaMxK) *
         kCudaMxAtomBytes;
}

/// Where the scale of a row and a block lies among them.
MIMO_RT_HOST_DEVICE constexpr uint64_t cuda_mx_scale_offset(uint32_t row, uint32_t block,
                                                            uint32_t padded_k) {
  const uint64_t atom = uint64_t{row / kCudaMxScaleRows} * (padded_k / kCudaMxK) + block / 4;
  const uint32_t r = row % kCudaMxScaleRows;
  return atom * kCudaMxAtomBytes + r % 32 * 16 + r / 32 * 4 + block % 4;
}

/// Activations of a route: the row of scales of an expert's first slot, the `active_idx`-th active
/// one. Atoms of experts never overlap, whatever the route.
MIMO_RT_HOST_DEVICE constexpr uint32_t cuda_mx_scale_row(uint32_t first_slot, uint32_t active_idx) {
  return (first_slot / kCudaMxScaleRows + active_idx) * kCudaMxScaleRows;
}

/// Shape of one packed expert matrix, rows of gate and up counted together.
struct CudaMxShape {
  uint32_t rows = 0;
  uint32_t k = 0;  ///< multiple of 32

  MIMO_RT_HOST_DEVICE constexpr uint32_t padded_k() const { return cuda_mx_padded_k(k); }
  MIMO_RT_HOST_DEVICE constexpr uint64_t code_bytes() const {
    return uint64_t{rows} * (padded_k() / 2);
  }
  /// A multiple of 512 for 8 and more rows.
  MIMO_RT_HOST_DEVICE constexpr uint64_t bytes() const {
    return code_bytes() + cuda_mx_scale_bytes(rows, padded_k());
  }
};

}  // namespace mimo_rt
