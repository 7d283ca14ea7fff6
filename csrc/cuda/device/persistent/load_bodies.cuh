// From a task slot to the loader's half of its kind: the same functions that the single kernels
// call.
#pragma once

#include "cuda/device/persistent/known_route.cuh"
#include "cuda/device/persistent/task_units.cuh"

namespace mimo_rt::cuda {

/// Whether what is to be read is known, or written, only when the inputs are there.
__device__ __forceinline__ bool loads_after_ready(const TaskSlot& slot, const KnownRoute& route) {
  switch (slot.operands.body) {
    case TaskBody::attention:
    case TaskBody::expert_gate_up: return true;
    case TaskBody::expert_down: return !route.is_of(slot);
    default: return false;
  }
}

__device__ __forceinline__ void load_projection_task(WorkShared& shared, const TaskSlot& slot,
                                            uint32_t& ticket) {
  const auto& p = params_of<ProjectionParams>(slot);
  const UnitRange units = projection_units_of(slot);
  if (p.format == ProjectionFormat::fp8_e4m3)
    return load_projection<Fp8Tiles>(shared.projection, p, units, ticket);
  load_projection<Bf16Tiles>(shared.projection, p, units, ticket);
}

__device__ __forceinline__ void load_router_task(WorkShared& shared, const TaskSlot& slot,
                                        uint32_t& ticket) {
  const auto& p = params_of<RouterLogitsParams>(slot);
  for_each_router_unit(slot, [&](uint32_t i) {
    const uint32_t unit = router_unit_of(slot, i);
    const UnitRange units{unit, 1, unit + 1};
    if (p.format == RouterFormat::f32)
      return load_router_logits<F32Rows>(shared.router, p, units, ticket);
    load_router_logits<Bf16Rows>(shared.router, p, units, ticket);
  });
}

/// Loader warp; where `loads_after_ready`, after it.
__device__ __forceinline__ void load_task(WorkShared& shared, const TaskSlot& slot, uint32_t& ticket) {
  switch (slot.operands.body) {
    case TaskBody::projection:
    case TaskBody::gate_up:
    case TaskBody::heads: return load_projection_task(shared, slot, ticket);
    case TaskBody::attention:
      ptx::fence_proxy_async();  // the step's own keys and values came with ordinary stores
      return load_attended_rows(shared.attention, params_of<AttendRowsParams>(slot),
                                slot.task, ticket);
    case TaskBody::router: return load_router_task(shared, slot, ticket);
    case TaskBody::expert_gate_up:
      return for_each_expert_tile(slot, [&](uint32_t t) {
        load_expert_gate_up(shared.expert, params_of<ExpertGateUpParams>(slot),
                            expert_units_of(slot, t), ticket);
      });
    case TaskBody::expert_down:
      return load_expert_down(shared.expert, params_of<ExpertDownParams>(slot), units_of(slot),
                              ticket);
    case TaskBody::nothing:
    case TaskBody::embed:
    case TaskBody::rms_norm:
    case TaskBody::select_experts:
    case TaskBody::publish_route:
    case TaskBody::sample:
    case TaskBody::accept:
    case TaskBody::context_norm:
    case TaskBody::draft_embed:
    case TaskBody::draft_sample: return;
  }
}

}  // namespace mimo_rt::cuda
