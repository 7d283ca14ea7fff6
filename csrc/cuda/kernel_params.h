// What the kernels share: the shape of a block, its ring of weights, rows of activations. For g++
// and nvcc.
#pragma once

#include <cstdint>

namespace mimo_rt::cuda {

inline constexpr uint32_t kMaxTokens = 64;  ///< of one call

// 8 compute warps: two per scheduler hide each other's latencies, and unpacking needs all four.
inline constexpr uint32_t kComputeWarps = 8;
inline constexpr uint32_t kBlockThreads = 32 * (kComputeWarps + 1);
// A stage is one copy: 8 tiles of MXFP4, 2 of FP8 or BF16. 32 stages are 136 KiB in flight, of
// which the short segments of a rank's slice (4 tiles) still use 68 KiB; about 40 cover the latency
// of HBM.
inline constexpr uint32_t kStageBytes = 4352;
inline constexpr uint32_t kNumStages = 32;
inline constexpr uint32_t kMaxSharedBytes = 227 * 1024;  ///< of a block, sm_90 and sm_100

/// Rows of 16-bit or 32-bit elements. `stride` counts elements.
template <typename T>
struct RowsView {
  T* data = nullptr;  ///< 16-byte aligned, as is every row
  uint32_t stride = 0;

#if defined(__CUDACC__)
  __device__
#endif
      T*
      row(uint32_t i) const {
    return data + uint64_t{i} * stride;
  }
};

/// A second place for rows that become final: x after a layer is also what a draft sees of it.
struct CaptureOutput {
  uint16_t* const* rows = nullptr;  ///< [num_tokens] BF16; nullptr: none
  uint32_t first_column = 0;        ///< of the rows, for column 0
};

}  // namespace mimo_rt::cuda
