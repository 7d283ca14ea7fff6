// Bulk copies: carried out by the async proxy while the threads go on.
#pragma once

#include "cuda/device/ptx/address.cuh"

namespace mimo_rt::ptx {

/// createpolicy.fractional.L2::evict_first: for bytes that are read once, such as weights.
__device__ __forceinline__ uint64_t evict_first_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// createpolicy.fractional.L2::evict_last: for bytes that many blocks read.
__device__ __forceinline__ uint64_t evict_last_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// cp.async.bulk global -> shared: `num_bytes` (a multiple of 16, both addresses 16-byte aligned)
/// are counted on `barrier` when they have arrived. Bytes that threads have written (source, or
/// destination before) need fence_proxy_async first.
__device__ __forceinline__ void bulk_copy(void* shared_dst, const void* global_src,
                                          uint32_t num_bytes, uint64_t* barrier,
                                          uint64_t l2_policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared_dst)),
      "l"(__cvta_generic_to_global(global_src)), "r"(num_bytes), "r"(shared_address(barrier)),
      "l"(l2_policy)
      : "memory");
}

/// fence.proxy.async: orders this thread's earlier ordinary accesses (and those it has synchronised
/// with) before later accesses of the async proxy.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async;" ::: "memory");
}

}  // namespace mimo_rt::ptx
