// The block's place, its shared memory, its registers, time, and the emergency stop.
#pragma once

#include <cstdint>

namespace mimo_rt::ptx {

/// The dynamic shared memory of this block, 1024-byte aligned.
__device__ __forceinline__ uint8_t* dynamic_shared_memory() {
  extern __shared__ __align__(1024) uint8_t mimo_rt_dynamic_shared_memory[];
  return mimo_rt_dynamic_shared_memory;
}

/// %globaltimer in ns: the same clock on all blocks; its steps are about a microsecond.
__device__ __forceinline__ uint64_t global_timer_ns() {
  uint64_t time_ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time_ns));
  return time_ns;
}

/// nanosleep: gives the issue slots to other warps.
__device__ __forceinline__ void sleep_ns(uint32_t time_ns) { __nanosleep(time_ns); }

/// trap: ends the kernel with an error that every later CUDA call reports.
__device__ __forceinline__ void trap() { asm volatile("trap;"); }

/// setmaxnreg.inc: takes registers from the block's pool, waits until they are there. All warps of
/// a warp group; needs __launch_bounds__(threads, 1), or ptxas ignores it.
template <uint32_t kRegisters>
__device__ __forceinline__ void raise_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// setmaxnreg.dec: gives registers back to the block's pool. All warps of a warp group.
template <uint32_t kRegisters>
__device__ __forceinline__ void lower_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace mimo_rt::ptx
