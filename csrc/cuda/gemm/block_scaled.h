// Grouped products of MXFP4 weights and MXFP8 activations with the matrix instructions of sm_100a
// (tcgen05): one group per active expert. The kernel is CUTLASS's, see block_scaled_sm100.cu.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/launch_options.h"
#include "plan/route_table.h"

namespace mimo_rt::cuda {

/// out[slot, row] = sum over k of weight[expert of the slot][row, k] * x[slot, k], in FP32.
struct BlockScaledGemm {
  const uint8_t* weights = nullptr;  ///< expert 0 as weights/cuda_mx.h has it; the others follow
  uint32_t rows = 0, k = 0;          ///< of an expert; k padded, a multiple of kCudaMxK
  const uint8_t* codes = nullptr;    ///< E4M3 [max_slots, k]
  const uint8_t* scales = nullptr;   ///< E8M0 as cuda_mx.h has them, from cuda_mx_scale_row on
  float* out = nullptr;              ///< [max_slots, rows]
  RouteTable route{};
  uint32_t num_experts = 0, max_slots = 0;
  uint8_t* workspace = nullptr;  ///< [block_scaled_workspace_bytes(num_experts)]
};

/// What the description of a group takes, and what the copies' descriptors of all multiprocessors
/// do; with room to spare, a launch checks.
inline constexpr uint64_t kGroupBytes = 512, kDescriptorBytes = uint64_t{1} << 18;
inline uint64_t block_scaled_workspace_bytes(uint32_t num_experts) {
  return kDescriptorBytes + num_experts * kGroupBytes;
}

/// @throws Error{unavailable} for another current device than sm_100, in a build without CUTLASS
void check_block_scaled(const char* where);

/// Launches two kernels on the current device, one after the other, and returns at once: the first
/// lists the groups of the route, the second multiplies. Pointers are to its memory, multiples of
/// 128. More blocks than multiprocessors are as many. `where` and `shapes`: of the caller, for
/// errors.
/// @throws as check_block_scaled; Error{device_lost} when CUDA refuses
void launch_block_scaled_gemm(const BlockScaledGemm& gemm, const LaunchOptions& options,
                              const char* where, const std::string& shapes);

}  // namespace mimo_rt::cuda
