// The circular shared-memory ring through which weights come: one loader warp fills stages with
// bulk copies, and for each stage its owners, compute warps, wait, read and give it back.
//
// A *ticket* is the running number of a stage use since the kernel began; it may wrap around. The
// loader and the owners of a ticket agree on it by computing it from the same work list. Stage and
// parity follow from the ticket, so nobody keeps a phase bit.
//
// Proxies: bulk copies write a stage (async), compute warps only read it (generic). `release`
// orders those reads before the next copy through the mbarrier, which needs no proxy fence.
#pragma once

#include "cuda/device/sync/mbarrier.cuh"

namespace mimo_rt::cuda {

/// `kIsTimed`: whether `init` may ask for the times of waits, which costs each wait registers.
template <uint32_t kNumStages, uint32_t kStageBytes, uint32_t kOwners = 1, bool kIsTimed = false>
struct Ring {
  static_assert((kNumStages & (kNumStages - 1)) == 0, "tickets wrap around at 2^32");
  static_assert(kStageBytes % 128 == 0, "keeps the alignment of bulk copies");

  alignas(128) uint8_t stages[kNumStages][kStageBytes];
  uint64_t full[kNumStages];   ///< one arrival of the loader, and the bytes
  uint64_t empty[kNumStages];  ///< one arrival of each owner
  uint32_t* waited_ns;         ///< see init

  /// One thread of the block, once per kernel. A block barrier must follow. `waited_ns_`: one word
  /// for each warp of the block that waits, to which the time of its waits is added, where kIsTimed; or
  /// nullptr.
  __device__ void init(uint32_t* waited_ns_ = nullptr) {
    waited_ns = waited_ns_;
    for (uint32_t stage = 0; stage < kNumStages; ++stage) {
      ptx::mbarrier_init(&full[stage], 1);
      ptx::mbarrier_init(&empty[stage], kOwners);
    }
    ptx::fence_mbarrier_init();
  }

  /// Loader, one thread per ticket: waits until the stage is free, then announces `num_bytes`.
  __device__ void open(uint32_t ticket, uint32_t num_bytes) {
    const uint32_t stage = ticket % kNumStages;
    wait_for_phase(&empty[stage], parity(ticket) ^ 1);  // complete on a fresh barrier
    ptx::mbarrier_arrive_expect_tx(&full[stage], num_bytes);
  }
  /// Loader, any thread, after `open`: starts a copy of some of the bytes.
  __device__ void copy(uint32_t ticket, uint32_t offset, const uint8_t* source, uint32_t num_bytes,
                       uint64_t l2_policy) {
    const uint32_t stage = ticket % kNumStages;
    ptx::bulk_copy(stages[stage] + offset, source, num_bytes, &full[stage], l2_policy);
  }
  /// Loader, one thread per ticket: both, with one copy (0 bytes: only signals).
  __device__ void fill(uint32_t ticket, const uint8_t* source, uint32_t num_bytes,
                       uint64_t l2_policy) {
    open(ticket, num_bytes);
    if (num_bytes != 0) copy(ticket, 0, source, num_bytes, l2_policy);
  }

  /// An owner, all lanes of the warp: waits until the bytes of `ticket` are there. Those of
  /// `ticket` - kNumStages must have been: a parity is also that of the phase before the last. So
  /// this warp waited for them, or a barrier lies behind an owner's wait.
  __device__ const uint8_t* wait(uint32_t ticket) {
    uint64_t* barrier = &full[ticket % kNumStages];
    if constexpr (!kIsTimed) wait_for_phase(barrier, parity(ticket));
    else if (!ptx::mbarrier_test_wait(barrier, parity(ticket))) wait_for_bytes(barrier, parity(ticket));
    return stages[ticket % kNumStages];
  }

  /// An owner, all lanes of the warp: the stage has been read.
  __device__ void release(uint32_t ticket, uint32_t lane_idx) {
    ptx::sync_warp();
    if (lane_idx == 0) ptx::mbarrier_arrive(&empty[ticket % kNumStages]);
  }

 private:
  /// Looks at the clock only where somebody wants to know: the loader may be waiting for this warp.
  __device__ __forceinline__ void wait_for_bytes(uint64_t* barrier, uint32_t phase) {
    if (!waited_ns) return wait_for_phase(barrier, phase);
    const auto start_ns = static_cast<uint32_t>(ptx::global_timer_ns());
    wait_for_phase(barrier, phase);
    if (threadIdx.x % 32 == 0)
      waited_ns[threadIdx.x / 32] += static_cast<uint32_t>(ptx::global_timer_ns()) - start_ns;
  }
  __device__ static uint32_t parity(uint32_t ticket) { return ticket / kNumStages & 1; }
};

}  // namespace mimo_rt::cuda
