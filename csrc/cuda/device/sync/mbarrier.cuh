// Waiting for a phase of an mbarrier, with a deadline.
#pragma once

#include "cuda/device/sync/wait_clock.cuh"

namespace mimo_rt::cuda {

/// No wait inside a block takes longer unless a role is broken; then the kernel traps instead of hanging: device_lost,
/// without a report, for whose address every such wait would need a register.
inline constexpr uint64_t kPhaseDeadlineNs = 10'000'000'000;

/// Waits until the phase of `parity` of `barrier` is complete. What the arriving threads wrote
/// before (generic proxy) and what bulk copies brought (async proxy) can be read afterwards by
/// every thread that has waited.
__device__ __forceinline__ void wait_for_phase(uint64_t* barrier, uint32_t parity) {
  if (ptx::mbarrier_try_wait(barrier, parity)) return;
  WaitClock clock;
  while (!ptx::mbarrier_try_wait(barrier, parity))
    if (clock.has_passed(kPhaseDeadlineNs)) ptx::trap();
}

}  // namespace mimo_rt::cuda
