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

/// red.release.gpu.add: earlier accesses of this thread come before it.
__device__ __forceinline__ void add_release_gpu(uint32_t* address, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

/// ld.relaxed.gpu: a whole 64-bit word, ordered with nothing else.
__device__ __forceinline__ uint64_t load_relaxed_gpu(const uint64_t* address) {
  uint64_t value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
}

/// st.relaxed.gpu: a whole 64-bit word, ordered with nothing else.
__device__ __forceinline__ void store_relaxed_gpu(uint64_t* address, uint64_t value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

/// atom.acq_rel.gpu.cas: stores `desired` where `expected` was; the value before.
__device__ __forceinline__ uint32_t compare_exchange_gpu(uint32_t* address, uint32_t expected,
                                                         uint32_t desired) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.cas.b32 %0, [%1], %2, %3;"
               : "=r"(before)
               : "l"(address), "r"(expected), "r"(desired)
               : "memory");
  return before;
}

/// atom.acq_rel.gpu.inc: counts 0, 1, … `last`, 0, …; the value before.
__device__ __forceinline__ uint32_t count_to_gpu(uint32_t* address, uint32_t last) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(address), "r"(last)
               : "memory");
  return before;
}

/// ld.relaxed.sys: a whole 64-bit word that the host may change at any time; ordered with nothing else.
__device__ __forceinline__ uint64_t load_relaxed_system(const uint64_t* address) {
  uint64_t value;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
}

/// st.release.sys: for the host and other devices; earlier accesses of this thread come before it.
__device__ __forceinline__ void store_release_system(uint32_t* address, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
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
