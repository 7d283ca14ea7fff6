// What the expert kernels for many tokens (prefill, large batches) are given, and their constants.
// For g++ and nvcc. They compute what expert_mlp_params.h says with the same segments, the same 16 k
// to a product and the same order of experts, so that a token's results do not depend on how many
// come with it. Each call is several kernels:
//
//   pack     activations of all slots, by expert, as tiles that products read as they lie
//   gemm     128 rows of weights x up to 128 slots of one expert at a time
//   combine  (down) the slots of each token, experts ascending
#pragma once

#include <cstdint>

#include "cuda/expert_mlp_params.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kMaxGemmTokens = 8192;
inline constexpr uint32_t kMaxGemmSlots = 1u << 16;
inline constexpr uint32_t kMaxGemmExperts = 512;

// A block: two warp groups that multiply, one of which a warp loads.
inline constexpr uint32_t kGemmWarps = 8, kGemmThreads = 32 * (kGemmWarps + 4);
inline constexpr uint32_t kGemmComputeRegisters = 232, kGemmLoadRegisters = 40;

// Packed activations: 8 slots x 64 k of BF16. k as a lane of cuda_tiles.h has them; 16-byte chunk
// c of slot s at c ^ s, as ptx::wgmma_columns asks for.
inline constexpr uint32_t kSlotGroup = 8, kSlotTileBytes = 1024;
/// Groups of slots that a block multiplies at a time, at most (math/group_products.cuh).
inline constexpr uint32_t kMaxSlotGroups = 16;

/// Room for the packed activations of a call. The groups of expert i of the active ones begin at
/// slot_begin[i] / 8 + i: they never overlap, whatever the route.
inline uint64_t packed_slots_bytes(uint32_t max_slots, uint32_t num_experts, uint32_t k) {
  const uint64_t num_active = num_experts < max_slots ? num_experts : max_slots;
  return (max_slots / kSlotGroup + num_active) * ((k + kCudaTileK - 1) / kCudaTileK) *
         kSlotTileBytes;
}

/// num_tokens up to kMaxGemmTokens, max_slots up to kMaxGemmSlots.
struct ExpertGateUpGemmParams : ExpertGateUpParams {
  uint8_t* packed = nullptr;  ///< [packed_slots_bytes(max_slots, num_experts, hidden_size)]
  uint32_t num_experts = 0;   ///< of the layer, 1 .. kMaxGemmExperts; no more are active
};

struct ExpertDownGemmParams : ExpertDownParams {
  uint8_t* packed = nullptr;  ///< [packed_slots_bytes(max_slots, num_experts, width)]
  float* partials = nullptr;  ///< [num_segments, max_slots, hidden_size], 16-byte aligned
  uint32_t num_experts = 0;   ///< of the layer, 1 .. kMaxGemmExperts; no more are active
};

}  // namespace mimo_rt::cuda
