// The counter edge: many tasks signal, many wait; for bulk results, and for several producers.
//
// Contract.
// - Counters only grow; nobody resets them. In epoch e (running number of the round since the
//   counters were zeroed) a task waits for e * total + value, where `total` is the signals of one
//   epoch. All of it modulo 2^32: comparisons are of differences, right as long as nobody is 2^31
//   signals behind, which the plan forbids (no worker is two epochs ahead of another).
// - Signalling is a release of GPU scope by one thread. What other threads of its block wrote must
//   have been ordered before it by a block barrier, a named barrier, an mbarrier or sync_warp: a
//   release is cumulative, so one fence serves all. A missing barrier is a race.
// - Waiting is an acquire of GPU scope by one thread. Other threads of its block see what it saw
//   after a barrier with it. Additions are read-modify-writes and continue the release sequences of
//   those before them: one load synchronises with all signallers.
// - Proxies. Both sides are generic: results that are written with ordinary stores and read with
//   ordinary (coherent: never ld.global.nc) loads need nothing more. If the consumer brings them
//   with a bulk copy, the *producer's writing threads* fence with fence_proxy_async after their
//   stores and before the barrier, and the waiting thread does so after the wait and before the
//   copy. If the producer writes them with bulk stores, it first waits for the completion of the
//   writes (cp.async.bulk.wait_group 0; the .read form only says that shared memory is free again)
//   and fences, then signals.
#pragma once

#include "cuda/device/sync/watchdog.cuh"
#include "cuda/persistent_params.h"

namespace mimo_rt::cuda {

__device__ __forceinline__ void signal_counter(CounterCell* counter) {
  ptx::add_release_gpu(&counter->value, 1);
}

/// One thread. False: leave the kernel.
__device__ __forceinline__ bool wait_for_counter(const Watchdog& watchdog,
                                                 const CounterCell* counter, uint32_t expected,
                                                 const WaitSite& site) {
  return wait_until(
      watchdog, site, expected, [&] { return ptx::load_acquire_gpu(&counter->value); },
      [&](uint32_t seen) { return static_cast<int32_t>(seen - expected) >= 0; });
}

}  // namespace mimo_rt::cuda
