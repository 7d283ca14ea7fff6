// A token that tasks hand around by one kind of edge, and that nothing else holds up: the time of a
// hop is what the edge costs. Counters are waited for and signalled as in the persistent kernel. By tag
// each of 256 threads waits for one word of its own; there one warp brings all (receive_tagged).
//
// The row that a hop writes is not read any more: its readers were those of the hop before the last
// one, and the hop that was waited for came after them. Launches go on where the last one ended.
#pragma once

#include "cuda/device/sync/counter.cuh"
#include "cuda/device/sync/mbarrier.cuh"
#include "cuda/device/sync/tagged.cuh"
#include "cuda/edge_relay_params.h"

namespace mimo_rt::cuda {

struct RelayShared {
  uint32_t token[2][kRelayThreads];
  uint64_t done;       ///< mbarrier: all warps have done a hop
  uint32_t is_met[2];  ///< of the waits of even and odd hops
};

/// Whose value this thread takes: of another warp, so that a hop needs all of the one before.
__device__ __forceinline__ uint32_t relay_source() { return (threadIdx.x + 32) % kRelayThreads; }

__device__ __forceinline__ uint32_t* relay_row(uint32_t* rows, uint32_t hop) {
  return rows + hop % 2 * kRelayThreads;
}

__device__ __forceinline__ WaitSite relay_site(EdgeKind edge, uint32_t hop) {
  return {blockIdx.x, hop, kNumTaskKinds, kNoLayer, edge, 0};
}

/// Thread 0 waits until the hops before `hop` have been signalled; all threads get the answer.
__device__ __forceinline__ bool wait_for_hop(RelayShared& shared, const EdgeRelayParams& p,
                                             uint32_t hop) {
  if (threadIdx.x == 0)
    shared.is_met[hop % 2] = wait_for_counter(p.watchdog, p.counter, hop * p.num_signallers,
                                              relay_site(EdgeKind::counter, hop));
  ptx::named_barrier_sync(0, kRelayThreads);
  return shared.is_met[hop % 2] != 0;
}

__device__ inline void relay_by_counter(RelayShared& shared, const EdgeRelayParams& p) {
  for (uint32_t i = 0; i < p.num_hops; ++i) {
    const uint32_t hop = p.first_hop + i;
    const uint32_t turn = (blockIdx.x + gridDim.x - hop % gridDim.x) % gridDim.x;
    if (turn != 0 && p.edge != RelayEdge::gather) continue;
    if (!wait_for_hop(shared, p, hop)) return;
    if (turn >= p.num_signallers) continue;
    if (turn == 0)
      relay_row(p.token, hop + 1)[threadIdx.x] = relay_row(p.token, hop)[relay_source()] + 1;
    ptx::named_barrier_sync(0, kRelayThreads);
    if (threadIdx.x == 0) signal_counter(p.counter);
  }
}

/// Epoch h is the token after h hops. It is nowhere else: this edge orders no other memory. The
/// barrier makes a task of the threads: none hands a value on before all have theirs, so no word is
/// overwritten while its reader is pending. A thread whose wait has failed hands nothing on, and
/// stays for the barriers.
__device__ inline void relay_by_tag(const EdgeRelayParams& p) {
  for (uint32_t i = 0; i < p.num_hops; ++i) {
    const uint32_t hop = p.first_hop + i;
    if (hop % gridDim.x != blockIdx.x) continue;
    uint32_t value = 0;
    const TaggedWord* word = tagged_row(p.words, kRelayThreads, hop) + relay_source();
    const bool is_met =
        wait_for_tagged(p.watchdog, word, hop, relay_site(EdgeKind::tag, hop), value);
    ptx::named_barrier_sync(0, kRelayThreads);
    if (!is_met) continue;
    publish_tagged(tagged_row(p.words, kRelayThreads, hop + 1) + threadIdx.x, value + 1, hop + 1);
  }
}

__device__ inline void relay_in_block(RelayShared& shared, const EdgeRelayParams& p) {
  uint32_t first = 0;  // of a block that only keeps its multiprocessor busy
  if (blockIdx.x == 0) first = relay_row(p.token, p.first_hop)[threadIdx.x];
  shared.token[0][threadIdx.x] = first;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&shared.done, kComputeWarps);
    ptx::fence_mbarrier_init();
  }
  ptx::named_barrier_sync(0, kRelayThreads);
  for (uint32_t i = 0; i < p.num_hops; ++i) {
    shared.token[(i + 1) % 2][threadIdx.x] = shared.token[i % 2][relay_source()] + 1;
    ptx::sync_warp();
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&shared.done);
    wait_for_phase(&shared.done, i % 2);
  }
  if (blockIdx.x != 0) return;
  uint32_t* last = relay_row(p.token, p.first_hop + p.num_hops);
  last[threadIdx.x] = shared.token[p.num_hops % 2][threadIdx.x];
}

__global__ void __launch_bounds__(kRelayThreads, 1)
    edge_relay_kernel(const __grid_constant__ EdgeRelayParams params) {
  auto& shared = *reinterpret_cast<RelayShared*>(ptx::dynamic_shared_memory());
  switch (params.edge) {
    case RelayEdge::same_worker: return relay_in_block(shared, params);
    case RelayEdge::tag: return relay_by_tag(params);
    case RelayEdge::counter:
    case RelayEdge::gather: return relay_by_counter(shared, params);
  }
}

}  // namespace mimo_rt::cuda
