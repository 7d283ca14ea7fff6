// Ordered and hinted accesses to global memory.
#pragma once

#include <cstdint>

namespace mimo_rt::ptx {

/// Sixteen bytes as four words.
struct alignas(16) Words4 {
  uint32_t word[4];
};

/// ld.acquire.gpu: later accesses of this thread come after it.
__device__ __forceinline__ uint32_t load_acquire_gpu(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

/// st.release.gpu: earlier accesses of this thread come before it.
__device__ __forceinline__ void store_release_gpu(uint32_t* address, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

/// red.release.gpu.add: earlier accesses of this thread come before it.
__device__ __forceinline__ void add_release_gpu(uint32_t* address, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

/// ld.global.L1::evict_last, 16 bytes, 16-byte aligned: activations, which other blocks read too.
/// Coherent: sees what an acquire of this thread has made visible. Not for bytes that this thread
/// writes.
__device__ __forceinline__ Words4 load_16_bytes_keep(const void* address) {
  Words4 v;
  asm volatile("ld.global.L1::evict_last.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(address));
  return v;
}

/// ld.global.nc.L1::no_allocate, 16 bytes, 16-byte aligned: bytes that are read once and that no
/// kernel writes while this one runs.
__device__ __forceinline__ Words4 load_16_bytes_once(const void* address) {
  Words4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(address));
  return v;
}

}  // namespace mimo_rt::ptx
