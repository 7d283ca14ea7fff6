// From a task slot to the role functions of its kind: the same that the single kernels call.
#pragma once

#include "cuda/device/persistent/task_slots.cuh"
#include "cuda/device/tasks/expert_mlp.cuh"
#include "cuda/device/tasks/projection.cuh"
#include "cuda/device/tasks/rms_norm.cuh"

namespace mimo_rt::cuda {

/// One ring for all kinds: both begin with it. What is behind it belongs to the task at hand.
union WorkShared {
  ExpertShared expert;
  ProjectionShared projection;
};
static_assert(offsetof(ExpertShared, ring) == 0 && offsetof(ProjectionShared, ring) == 0);

template <typename Params>
__device__ __forceinline__ const Params& params_of(const TaskSlot& slot) {
  return *reinterpret_cast<const Params*>(slot.operands.params);
}

__device__ __forceinline__ UnitRange units_of(const TaskSlot& slot) {
  return {slot.task.tile_first, slot.task.tile_stride, slot.task.tile_end};
}

/// Whether which weights are read is known only when the inputs are there.
__device__ __forceinline__ bool needs_route(const TaskSlot& slot) {
  return slot.operands.body == TaskBody::expert_gate_up ||
         slot.operands.body == TaskBody::expert_down;
}

/// Units of an expert task are counted over all active experts, `tile_end` for each.
__device__ __forceinline__ UnitRange expert_units_of(const TaskSlot& slot, uint32_t num_active) {
  return {slot.task.tile_first, slot.task.tile_stride, slot.task.tile_end * num_active};
}

/// Loader warp. Expert tasks: after `ready`.
__device__ inline void load_task(WorkShared& shared, const TaskSlot& slot, uint32_t& ticket) {
  switch (slot.operands.body) {
    case TaskBody::rms_norm: return;
    case TaskBody::projection: {
      const auto& p = params_of<ProjectionParams>(slot);
      if (p.format == ProjectionFormat::fp8_e4m3)
        return load_projection<Fp8Tiles>(shared.projection, p, units_of(slot), ticket);
      return load_projection<Bf16Tiles>(shared.projection, p, units_of(slot), ticket);
    }
    case TaskBody::expert_gate_up: {
      const auto& p = params_of<ExpertGateUpParams>(slot);
      return load_expert_gate_up(shared.expert, p, expert_units_of(slot, *p.route.num_active),
                                 ticket);
    }
    case TaskBody::expert_down:
      return load_expert_down(shared.expert, params_of<ExpertDownParams>(slot), units_of(slot),
                              ticket);
  }
}

template <typename Tiles>
__device__ __forceinline__ void compute_projection_task(ProjectionShared& shared,
                                                        const TaskSlot& slot, uint32_t& ticket) {
  const auto& p = params_of<ProjectionParams>(slot);
  if (p.norm_weight) return compute_projection<Tiles, true>(shared, p, units_of(slot), ticket);
  compute_projection<Tiles, false>(shared, p, units_of(slot), ticket);
}

/// Compute warps, after `ready`.
__device__ inline void compute_task(WorkShared& shared, const TaskSlot& slot, uint32_t& ticket) {
  switch (slot.operands.body) {
    case TaskBody::rms_norm:
      return compute_rms_norm(params_of<RmsNormParams>(slot), units_of(slot));
    case TaskBody::projection:
      if (params_of<ProjectionParams>(slot).format == ProjectionFormat::fp8_e4m3)
        return compute_projection_task<Fp8Tiles>(shared.projection, slot, ticket);
      return compute_projection_task<Bf16Tiles>(shared.projection, slot, ticket);
    case TaskBody::expert_gate_up: {
      const auto& p = params_of<ExpertGateUpParams>(slot);
      return compute_expert_gate_up(shared.expert, p, expert_units_of(slot, *p.route.num_active),
                                    ticket);
    }
    case TaskBody::expert_down:
      return compute_expert_down(shared.expert, params_of<ExpertDownParams>(slot), units_of(slot),
                                 ticket);
  }
}

/// Compute warps, when the task is skipped: what the loader has brought all the same is given back.
__device__ inline void skip_task(WorkShared& shared, const TaskSlot& slot, uint32_t& ticket) {
  if (slot.operands.body != TaskBody::projection) return;
  const auto& p = params_of<ProjectionParams>(slot);
  if (p.format == ProjectionFormat::fp8_e4m3)
    return skip_projection<Fp8Tiles>(shared.projection, p, units_of(slot), ticket);
  skip_projection<Bf16Tiles>(shared.projection, p, units_of(slot), ticket);
}

}  // namespace mimo_rt::cuda
