// Task words on their way through a block: the controller brings them ahead of time, every role
// walks the same sequence.
//
// Contract. Slot use n is in slot n % kTaskSlots; its phase follows from n. The order of a use:
// controller writes the task, `full`; waiter has waited for the task's inputs, writes `is_skipped`
// and `is_route_known`, `ready`; all compute warps have done it, `done`; publisher has signalled
// and loader has come to the next use, `is_free`. Then the controller overwrites it, and sees what
// was written in all of them.
//
// `ready` says nothing of the block's own earlier tasks: plans have no counter for those. The
// compute warps do tasks in order; a loader that needs results waits for `done` of the use before,
// whose slot it gives back only then: a use that came into that slot might be done meanwhile, and
// the phase be over-run.
#pragma once

#include "cuda/device/sync/mbarrier.cuh"
#include "cuda/persistent_params.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kTaskSlots = 4;

struct TaskSlot {
  TaskOperands operands;
  Task task;
  uint32_t use;  ///< its running number
  uint32_t task_idx, epoch;
  uint32_t is_end;      ///< nothing but the end of the launch: the other fields are not set
  uint32_t is_skipped;  ///< the launch is being left: no results, no signal
  uint32_t is_route_known;  ///< expert_down: the loader has not waited for `ready`, see KnownRoute
  uint64_t full, ready, done, is_free;

  __device__ uint32_t tag() const { return epoch + 1; }  ///< of tag edges: memory begins as zeros
};

struct TaskSlots {
  TaskSlot slots[kTaskSlots];

  /// One thread of the block, once per kernel. A block barrier must follow.
  __device__ void init() {
    for (TaskSlot& slot : slots) {
      ptx::mbarrier_init(&slot.full, 1);
      ptx::mbarrier_init(&slot.ready, 1);
      ptx::mbarrier_init(&slot.done, kComputeWarps);
      ptx::mbarrier_init(&slot.is_free, 2);
      slot.is_skipped = 0;
    }
    ptx::fence_mbarrier_init();
  }
  __device__ TaskSlot& of(uint32_t use) { return slots[use % kTaskSlots]; }
  __device__ static uint32_t parity(uint32_t use) { return use / kTaskSlots & 1; }

  /// Controller: when what was in the slot is over.
  __device__ TaskSlot& wait_free(uint32_t use) {
    wait_for_phase(&of(use).is_free, parity(use) ^ 1);  // complete on a fresh barrier
    return of(use);
  }
  __device__ TaskSlot& wait_full(uint32_t use) {
    wait_for_phase(&of(use).full, parity(use));
    return of(use);
  }
  __device__ void wait_ready(uint32_t use) { wait_for_phase(&of(use).ready, parity(use)); }
  __device__ void wait_done(uint32_t use) { wait_for_phase(&of(use).done, parity(use)); }
};

}  // namespace mimo_rt::cuda
