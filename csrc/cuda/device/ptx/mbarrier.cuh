// mbarrier: a barrier object in shared memory that counts arrivals and bytes of bulk copies.
//
// A phase completes when all expected arrivals and all expected bytes have come; the barrier then
// starts the next phase with the same count. Use sync/mbarrier.cuh, which keeps the parity.
#pragma once

#include "cuda/device/ptx/address.cuh"

namespace mimo_rt::ptx {

/// mbarrier.init: one thread, before anyone uses it; then fence_mbarrier_init and a block barrier.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t num_arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(num_arrivals)
               : "memory");
}

/// fence.mbarrier_init: makes this thread's inits visible to the async proxy.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// mbarrier.arrive (release): one arrival.
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

/// mbarrier.arrive.expect_tx (release): announces `num_bytes` of this phase, then one arrival.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t num_bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(num_bytes)
      : "memory");
}

/// mbarrier.try_wait.parity (acquire): whether the phase of that parity is complete; may sleep for
/// a bounded time first. Parity 1 is complete on a fresh barrier.
__device__ __forceinline__ bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t is_complete;
  asm volatile(
      "{\n"
      ".reg .pred complete;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
      "selp.u32 %0, 1, 0, complete;\n"
      "}"
      : "=r"(is_complete)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return is_complete != 0;
}

/// mbarrier.test_wait.parity (acquire): the same at once, without sleeping.
__device__ __forceinline__ bool mbarrier_test_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t is_complete;
  asm volatile(
      "{\n"
      ".reg .pred complete;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
      "selp.u32 %0, 1, 0, complete;\n"
      "}"
      : "=r"(is_complete)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return is_complete != 0;
}

}  // namespace mimo_rt::ptx
