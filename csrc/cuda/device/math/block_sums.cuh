// Sums over the lanes of a warp and over the compute threads of a block. Integers have no order; floats are added as a
// tree.
#pragma once

#include "cuda/device/tasks/weight_stream.cuh"

namespace mimo_rt::cuda {

/// All ones in the lanes from `first` on, else 0. Without a comparison: a thread has 7 predicates, and more of them are
/// spilled.
__device__ __forceinline__ uint32_t mask_from(uint32_t lane_idx, uint32_t first) {
  return static_cast<uint32_t>(static_cast<int32_t>(first - 1 - lane_idx) >> 31);
}

/// Sum over the lanes below this one.
__device__ inline uint32_t sum_below(uint32_t value) {
  const uint32_t lane_idx = threadIdx.x % 32;
  uint32_t sum = value;
#pragma unroll
  for (uint32_t distance = 1; distance < 32; distance *= 2) {
    const uint32_t other = ptx::shuffle(sum, lane_idx - distance);
    sum += other & mask_from(lane_idx, distance);
  }
  return sum - value;
}

__device__ inline uint64_t shuffle_64(uint64_t value, uint32_t lane_idx) {
  const uint64_t high = ptx::shuffle(static_cast<uint32_t>(value >> 32), lane_idx);
  return high << 32 | ptx::shuffle(static_cast<uint32_t>(value), lane_idx);
}

/// Sum over the lanes up to this one.
__device__ inline uint64_t sum_up_to(uint64_t value) {
  const uint32_t lane_idx = threadIdx.x % 32;
#pragma unroll
  for (uint32_t distance = 1; distance < 32; distance *= 2) {
    const uint64_t other = shuffle_64(value, lane_idx - distance);
    const uint64_t mask = mask_from(lane_idx, distance);
    value += other & (mask << 32 | mask);
  }
  return value;
}

__device__ inline uint64_t warp_sum(uint64_t value) {
#pragma unroll
  for (uint32_t mask = 16; mask != 0; mask /= 2) value += shuffle_64(value, threadIdx.x % 32 ^ mask);
  return value;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (uint32_t mask = 16; mask != 0; mask /= 2) value += ptx::shuffle_xor(value, mask);
  return value;
}

}  // namespace mimo_rt::cuda
