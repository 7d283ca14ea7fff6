// Barriers and exchanges between the threads of a warp and of a block.
#pragma once

#include <cstdint>

namespace mimo_rt::ptx {

inline constexpr uint32_t kAllLanes = 0xffffffffu;

/// bar.sync: waits until `num_threads` (a multiple of 32) threads have come to barrier `id`
/// (0..15). Orders their ordinary memory accesses. Called by whole warps.
__device__ __forceinline__ void named_barrier_sync(uint32_t id, uint32_t num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

/// bar.warp.sync: all lanes meet; orders their memory accesses.
__device__ __forceinline__ void sync_warp() { __syncwarp(kAllLanes); }

/// shfl.sync.idx: the value of lane `lane_idx`. All lanes take part.
template <typename T>
__device__ __forceinline__ T shuffle(T value, uint32_t lane_idx) {
  return __shfl_sync(kAllLanes, value, static_cast<int>(lane_idx));
}

/// shfl.sync.bfly: the value of the lane whose index differs by `lane_mask`. All lanes take part.
template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, uint32_t lane_mask) {
  return __shfl_xor_sync(kAllLanes, value, static_cast<int>(lane_mask));
}

/// redux.sync.max: the largest of all lanes, in all of them.
__device__ __forceinline__ uint32_t reduce_max(uint32_t value) { return __reduce_max_sync(kAllLanes, value); }

/// redux.sync.min: the least of all lanes, in all of them.
__device__ __forceinline__ uint32_t reduce_min(uint32_t value) { return __reduce_min_sync(kAllLanes, value); }

}  // namespace mimo_rt::ptx
