// The roles of the persistent kernel. Each walks the block's task slots on its own; what it waits
// for is stated in task_slots.cuh and counter.cuh.
//
// Leaving early. Only the waiter and the controller wait for other blocks. When such a wait fails,
// the waiter marks this task and all after it as skipped, and the controller ends the list at the
// next slot it fills. The loader does not look at the mark where it need not (dense weights, and
// experts' of a route that it knows), so the compute warps give those back: nothing is on its way
// when the block ends.
#pragma once

#include "cuda/device/persistent/compute_bodies.cuh"
#include "cuda/device/persistent/delays.cuh"
#include "cuda/device/persistent/load_bodies.cuh"
#include "cuda/device/persistent/step_operands.cuh"
#include "cuda/device/sync/counter.cuh"

namespace mimo_rt::cuda {

/// The route that is in PersistentShared::route. The waiter's.
struct HeldRoute {
  uint32_t counter, tag;
  uint32_t end_use;  ///< one past the last slot seen whose task reads `route`; 0: none was seen
};

struct PersistentShared {
  WorkShared work;
  TaskSlots slots;
  /// What has come by the last tag edge; at first no expert is active.
  uint32_t route[num_received_words(kMaxRouteWords)];
  HeldRoute held;
  KnownRoute known;  ///< the waiter's: polls need the registers
  uint32_t tickets[kComputeWarps];  ///< of the ring: where each compute warp is, between tasks
  uint32_t uses[kComputeWarps];     ///< of the slots: the same
  uint32_t ring_ns[kComputeWarps];  ///< with stamps: waits in the ring, of each compute warp's task
};
static_assert(sizeof(PersistentShared) <= kMaxSharedBytes);

/// Whether the task reads PersistentShared::route. Who publishes a route has it elsewhere.
__device__ __forceinline__ bool reads_route(const TaskOperands& operands) {
  return operands.route.rows && operands.body != TaskBody::publish_route;
}

__device__ __forceinline__ WaitSite wait_site(const TaskSlot& slot, EdgeKind edge, uint32_t counter) {
  return {blockIdx.x, slot.task_idx, static_cast<uint32_t>(slot.task.kind), slot.task.layer_idx, edge,
          counter};
}

/// One lane.
__device__ __forceinline__ bool wait_for_signals(const PersistentParams& p, const TaskSlot& slot,
                                                 const Wait& wait) {
  return wait_for_counter(p.watchdog, &p.counters[wait.counter],
                          slot.epoch * p.counter_totals[wait.counter] + wait.value,
                          wait_site(slot, EdgeKind::counter, wait.counter));
}

/// Waiter, all lanes: a route by a tag edge, once for all tasks of the block that read it.
__device__ __forceinline__ bool wait_for_route(PersistentShared& shared, const PersistentParams& p,
                                               const TaskSlot& slot) {
  const RouteEdge& edge = slot.operands.route;
  const HeldRoute& held = shared.held;
  if (held.counter == edge.counter && held.tag == slot.tag()) return true;
  const uint32_t next_use = held.end_use + kTaskSlots - 1;  // of the last reader's slot
  if (held.end_use != 0 && static_cast<int32_t>(next_use - slot.use) > 0) shared.slots.wait_free(next_use);
  const uint32_t num_words = RouteEdge::num_words(edge.max_slots);
  const TaggedWord* row = tagged_row(edge.rows, num_words, slot.tag());
  uint32_t is_met = receive_tagged(p.watchdog, row, num_words, slot.tag(),
                                   wait_site(slot, EdgeKind::tag, edge.counter), shared.route);
  for (uint32_t mask = 16; mask != 0; mask /= 2) is_met &= ptx::shuffle_xor(is_met, mask);
  ptx::sync_warp();  // all have read what was held
  if (threadIdx.x % 32 == 0) shared.held = {edge.counter, slot.tag(), held.end_use};
  return is_met != 0;
}

/// One lane: tasks on a tag edge have their route in shared memory.
__device__ inline void set_route(PersistentShared& shared, TaskOperands& operands) {
  if (!operands.route.rows) return;
  const bool publishes = operands.body == TaskBody::publish_route;
  uint32_t* words = publishes ? shared.work.select.rest.route : shared.route;
  const RouteTable route = RouteTable::view(reinterpret_cast<uint8_t*>(words),
                                            operands.route.max_slots, operands.route.max_slots);
  if (publishes) reinterpret_cast<PublishRouteParams*>(operands.params)->select.route = route;
  if (operands.body == TaskBody::expert_gate_up)
    reinterpret_cast<ExpertGateUpParams*>(operands.params)->route = route;
  if (operands.body == TaskBody::expert_down)
    reinterpret_cast<ExpertDownParams*>(operands.params)->route = route;
}

/// All lanes: brings a task into the slot. The `is_end` slot has no task.
__device__ inline void fill_slot(PersistentShared& shared, const PersistentParams& p, TaskSlot& slot,
                                 uint32_t use, uint32_t task_idx, uint32_t epoch) {
  const uint32_t lane_idx = threadIdx.x % 32;
  const uint64_t global_idx = p.worker_begin[blockIdx.x] + task_idx;
  const auto* task = reinterpret_cast<const uint32_t*>(p.tasks + global_idx);
  const auto* operands =
      reinterpret_cast<const uint32_t*>(p.operands + p.operand_idx[global_idx]);
  for (uint32_t i = lane_idx; i < sizeof(Task) / 4; i += 32)
    reinterpret_cast<uint32_t*>(&slot.task)[i] = task[i];
  for (uint32_t i = lane_idx; i < sizeof(TaskOperands) / 4; i += 32)
    reinterpret_cast<uint32_t*>(&slot.operands)[i] = operands[i];
  ptx::sync_warp();
  if (lane_idx == 0) {
    set_row_count(p, slot.operands);
    set_features(p, slot.operands);
    set_route(shared, slot.operands);
    slot.use = use;
    slot.task_idx = task_idx;
    slot.epoch = epoch;
  }
}

/// Controller warp: all tasks of all epochs, then the end. All blocks see the same epoch end the
/// rounds: the step says so before the gate is signalled.
__device__ __forceinline__ void run_controller(PersistentShared& shared, const PersistentParams& p) {
  const uint32_t lane_idx = threadIdx.x % 32;
  const uint32_t num_tasks = p.worker_begin[blockIdx.x + 1] - p.worker_begin[blockIdx.x];
  uint32_t use = 0;
  bool goes_on = num_tasks != 0;
  for (uint32_t e = 0; goes_on && e < p.num_epochs; ++e) {
    const uint32_t epoch = p.first_epoch + e;
    if (e != 0) {  // what the next epoch does, if there is one, is known when this one is over
      uint32_t has_next = 0;
      Watchdog watchdog = p.watchdog;
      watchdog.deadline_ns *= 2;  // waits for everybody: who hangs for another reason reports first
      if (lane_idx == 0)
        has_next = wait_for_counter(watchdog, &p.counters[p.gate_counter],
                                   epoch * p.counter_totals[p.gate_counter],
                                   {blockIdx.x, num_tasks, kNumTaskKinds, kNoLayer,
                                    EdgeKind::counter, p.gate_counter}) &&
                   !(p.step && p.step->is_over);
      goes_on = ptx::shuffle(has_next, 0) != 0;
    }
    for (uint32_t i = 0; goes_on && i < num_tasks; ++i, ++use) {
      TaskSlot& slot = shared.slots.wait_free(use);
      goes_on = slot.is_skipped == 0;
      if (!goes_on) break;
      ptx::sync_warp();
      fill_slot(shared, p, slot, use, i, epoch);
      if (lane_idx == 0) slot.is_end = 0;
      ptx::sync_warp();
      if (lane_idx == 0) ptx::mbarrier_arrive(&slot.full);
    }
  }
  TaskSlot& slot = shared.slots.wait_free(use);
  if (lane_idx != 0) return;
  slot.is_end = 1;
  ptx::mbarrier_arrive(&slot.full);
}

__device__ __forceinline__ TaskStamps& stamps_of(const PersistentParams& p, const TaskSlot& slot) {
  return p.stamps[p.worker_begin[blockIdx.x] + slot.task_idx];
}

/// Waiter warp: waits for the inputs of one task after the other.
__device__ __forceinline__ void run_waiter(PersistentShared& shared, const PersistentParams& p) {
  const uint32_t lane_idx = threadIdx.x % 32;
  uint32_t is_skipped = 0;
  for (uint32_t use = 0;; ++use) {
    TaskSlot& slot = shared.slots.wait_full(use);
    if (slot.is_end) return;
    if (p.stamps && lane_idx == 0) stamps_of(p, slot).fetched_ns = ptx::global_timer_ns();
    for (uint32_t i = 0; i < slot.task.num_waits && !is_skipped; ++i) {
      const Wait& wait = slot.task.waits[i];
      if (wait.counter == slot.operands.route.counter)
        is_skipped = !wait_for_route(shared, p, slot);
      else if (lane_idx == 0)
        is_skipped = !wait_for_signals(p, slot, wait);
      is_skipped = ptx::shuffle(is_skipped, 0);
    }
    if (lane_idx == 0 && reads_route(slot.operands)) shared.held.end_use = use + 1;
    ptx::sync_warp();  // what has come is there, and the slot is not looked at any more
    if (lane_idx != 0) continue;
    delay_role(p.delay_seed, DelayedRole::waiter, use);
    slot.is_skipped = is_skipped;
    slot.is_route_known = shared.known.is_of(slot);
    if (!is_skipped) shared.known.learn(slot);
    ptx::mbarrier_arrive(&slot.ready);
  }
}

/// Loader warp: weights first; only what the task's inputs decide or contain waits for them.
__device__ __forceinline__ void run_loader(PersistentShared& shared) {
  uint32_t ticket = 0;
  KnownRoute route;
  for (uint32_t use = 0;; ++use) {
    TaskSlot& slot = shared.slots.wait_full(use);
    if (slot.is_end) return;
    const bool is_after_ready = loads_after_ready(slot, route);
    if (use != 0) {
      if (is_after_ready) shared.slots.wait_done(use - 1);  // an edge from this block's own tasks
      ptx::sync_warp();  // all lanes are through with that use
      if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&shared.slots.of(use - 1).is_free);
    }
    if (is_after_ready) {
      shared.slots.wait_ready(use);
      if (slot.is_skipped) continue;
      route.learn(slot);
    }
    load_task(shared.work, slot, ticket);
  }
}

/// A compute warp has done the task, one lane: the rest of its stamps.
__device__ __forceinline__ void stamp_end(PersistentShared& shared, TaskStamps& stamps) {
  const uint32_t warp_idx = threadIdx.x / 32;
  stamps.end_ns[warp_idx] = ptx::global_timer_ns();
  stamps.ring_ns[warp_idx] = shared.ring_ns[warp_idx];
  shared.ring_ns[warp_idx] = 0;
}

/// Compute warps. Between tasks a warp's state lies in shared memory: the products need the
/// registers, and ptxas would spill it.
__device__ __forceinline__ void run_compute(PersistentShared& shared, const PersistentParams& p) {
  uint32_t &first_ticket = shared.tickets[threadIdx.x / 32], &use = shared.uses[threadIdx.x / 32];
  for (;;) {
    TaskSlot& slot = shared.slots.wait_full(use);
    if (slot.is_end) return;
    shared.slots.wait_ready(use);
    compute_barrier();  // the task before has another use for the same shared memory
    if (p.stamps && threadIdx.x == 0) stamps_of(p, slot).begin_ns = ptx::global_timer_ns();
    uint32_t ticket = first_ticket;
    if (slot.is_skipped)
      skip_task(shared.work, slot, ticket);
    else
      compute_task(shared.work, slot, ticket);
    if (threadIdx.x % 32 == 0) use = slot.use + 1;
    ptx::sync_warp();
    if (threadIdx.x % 32 != 0) continue;
    first_ticket = ticket;  // all lanes read it after the next barrier
    if (p.stamps) stamp_end(shared, stamps_of(p, slot));
    ptx::mbarrier_arrive(&slot.done);
  }
}

/// One lane: the results of all compute warps are there (acquired with `done`), then the signal.
/// Apart from the compute warps, which need not wait for its fence.
__device__ __forceinline__ void run_publisher(PersistentShared& shared, const PersistentParams& p) {
  if (threadIdx.x % 32 != 0) return;
  for (uint32_t use = 0;; ++use) {
    TaskSlot& slot = shared.slots.wait_full(use);
    if (slot.is_end) return;
    shared.slots.wait_done(use);
    delay_role(p.delay_seed, DelayedRole::publisher, use);
    const uint32_t counter = slot.task.signal_counter;
    if (!slot.is_skipped && counter != kNoCounter && counter != slot.operands.route.counter)
      signal_counter(&p.counters[counter]);
    ptx::mbarrier_arrive(&slot.is_free);
  }
}

__global__ void __launch_bounds__(kPersistentThreads, 1)
    persistent_kernel(const __grid_constant__ PersistentParams params) {
  auto& shared = *reinterpret_cast<PersistentShared*>(ptx::dynamic_shared_memory());
  if (threadIdx.x == kPersistentThreads - 1) {
    shared.work.projection.ring.init(params.stamps ? shared.ring_ns : nullptr);
    shared.slots.init();
    shared.held = {kNoCounter, 0, 0};
    shared.known = {};
    for (uint32_t& ticket : shared.tickets) ticket = 0;
    for (uint32_t& use : shared.uses) use = 0;
    for (uint32_t& ring_ns : shared.ring_ns) ring_ns = 0;
  }
  for (uint32_t i = threadIdx.x; i < kMaxRouteWords; i += kPersistentThreads) shared.route[i] = 0;
  ptx::named_barrier_sync(0, kPersistentThreads);
  const uint32_t warp_idx = threadIdx.x / 32;
  if (warp_idx < kComputeWarps) {
    ptx::raise_registers<kComputeRegisters>();
    return run_compute(shared, params);
  }
  ptx::lower_registers<kServiceRegisters>();
  switch (warp_idx - kComputeWarps) {
    case 0: return run_controller(shared, params);
    case 1: return run_loader(shared);
    case 2: return run_waiter(shared, params);
    default: return run_publisher(shared, params);
  }
}

}  // namespace mimo_rt::cuda
