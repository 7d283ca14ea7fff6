// Whether the loader knows which experts are active before the inputs of expert_down are there:
// only the edge from the router to the experts may hold weights back.
//
// Contract. The inputs of an expert_gate_up task contain the route, so when they are there, so is
// the route of this layer and epoch. The loader has acquired it then: with `ready` what the waiter
// saw (counter.cuh), with `done` of the use before what this block's own select_experts wrote. From
// then on it may read the route, and load what expert_down of the same layer and epoch needs. In a
// block without such a task, expert_down itself is the first to say that the route is there.
//
// What it reads cannot be of a later layer or epoch, though all share one table:
// - Without tag edges the table is in memory. Whoever writes it next comes after every expert_down
//   of this layer (Plan::verify: readers of `route`), also this block's; and that task does not end
//   before its compute warps have had all of its tickets, which the loader fills from the route. In
//   a launch that is being left neither: a skipped expert_down signals nothing, so nobody gets to
//   write the table.
// - With tag edges it is PersistentShared::route, and its next writer is this block's own waiter,
//   which writes from its first poll on. Before that it lets the slot of the last task that reads
//   the table become free (HeldRoute::end_use, `wait_free` in wait_for_route): the loader and the
//   compute warps have then both left that task. In a launch that is being left it writes no more.
//
// The waiter walks the same tasks and learns the same, so the compute warps of a skipped
// expert_down hear from it what the loader has done (`is_route_known`).
#pragma once

#include "cuda/device/persistent/task_slots.cuh"

namespace mimo_rt::cuda {

struct KnownRoute {
  uint32_t layer_idx = kNoLayer, epoch = 0;

  __device__ __forceinline__ bool is_of(const TaskSlot& slot) const {
    return slot.operands.body == TaskBody::expert_down && slot.task.layer_idx == layer_idx &&
           slot.epoch == epoch;
  }
  /// The inputs of the slot's task are there.
  __device__ __forceinline__ void learn(const TaskSlot& slot) {
    if (slot.operands.body != TaskBody::expert_gate_up) return;
    layer_idx = slot.task.layer_idx;
    epoch = slot.epoch;
  }
};

}  // namespace mimo_rt::cuda
