// From a task slot to the compute warps' half of its kind: the same functions that the single
// kernels call.
#pragma once

#include "cuda/device/persistent/task_units.cuh"
#include "cuda/device/sync/tagged.cuh"
#include "cuda/device/tasks/draft_rows.cuh"
#include "cuda/device/tasks/rms_norm.cuh"

namespace mimo_rt::cuda {

template <typename Tiles>
__device__ __forceinline__ void compute_projection_task(ProjectionShared& shared,
                                                        const TaskSlot& slot, uint32_t& ticket) {
  const auto& p = params_of<ProjectionParams>(slot);
  compute_projection<Tiles, false>(shared, p, projection_units_of(slot), ticket);
  const bool is_heads = slot.operands.body == TaskBody::heads;
  if (is_heads) finish_heads(params_of<HeadsParams>(slot), slot.task);
  if (is_heads || p.store == ProjectionStore::qkv)
    ptx::fence_proxy_async();  // attention brings keys and values with bulk copies
}

__device__ __forceinline__ void compute_router_task(WorkShared& shared, const TaskSlot& slot,
                                           uint32_t& ticket) {
  const auto& p = params_of<RouterLogitsParams>(slot);
  for_each_router_unit(slot, [&](uint32_t i) {
    const uint32_t unit = router_unit_of(slot, i);
    if (p.format == RouterFormat::f32)
      return compute_router_unit<F32Rows>(shared.router, p, unit, ticket);
    compute_router_unit<Bf16Rows>(shared.router, p, unit, ticket);
  });
}

/// The table is in shared memory (see set_route). Its rows beyond the slots there are go out as well.
__device__ __forceinline__ void publish_route(PublishShared& shared, const TaskSlot& slot) {
  const auto& p = params_of<PublishRouteParams>(slot);
  select_experts(shared.select, p.select);
  compute_barrier();
  const uint32_t* words = p.select.route.num_active;  // the first
  const uint32_t num_words = RouteEdge::num_words(slot.operands.route.max_slots);
  TaggedWord* row = tagged_row(slot.operands.route.rows, num_words, slot.tag());
  for (uint32_t i = threadIdx.x; i < num_words; i += kComputeWarps * 32)
    publish_tagged(&row[i], words[i], slot.tag());
  if (threadIdx.x == 0) *p.num_active = *words;
}

/// Compute warps, after `ready`.
__device__ __forceinline__ void compute_task(WorkShared& shared, const TaskSlot& slot, uint32_t& ticket) {
  switch (slot.operands.body) {
    case TaskBody::nothing: return;
    case TaskBody::embed:
      return compute_embed(params_of<EmbedParams>(slot), row_units_of(slot));
    case TaskBody::rms_norm:
      return compute_rms_norm(shared.norm.rest, params_of<RmsNormParams>(slot), row_units_of(slot));
    case TaskBody::projection:
    case TaskBody::gate_up:
    case TaskBody::heads:
      if (params_of<ProjectionParams>(slot).format == ProjectionFormat::fp8_e4m3)
        return compute_projection_task<Fp8Tiles>(shared.projection, slot, ticket);
      return compute_projection_task<Bf16Tiles>(shared.projection, slot, ticket);
    case TaskBody::attention:
      return compute_attended_rows(shared.attention, params_of<AttendRowsParams>(slot),
                                   slot.task, ticket);
    case TaskBody::router: return compute_router_task(shared, slot, ticket);
    case TaskBody::select_experts:
      return select_experts(shared.select.rest.select, params_of<SelectExpertsParams>(slot));
    case TaskBody::publish_route: return publish_route(shared.select.rest, slot);
    case TaskBody::expert_gate_up:
      return for_each_expert_tile(slot, [&](uint32_t t) {
        compute_expert_gate_up(shared.expert, params_of<ExpertGateUpParams>(slot), expert_units_of(slot, t), ticket);
      });
    case TaskBody::expert_down:
      return compute_expert_down(shared.expert, params_of<ExpertDownParams>(slot), units_of(slot), ticket);
    case TaskBody::sample:
      return sample_rows(shared.sample.rest, *params_of<SampleRowsParams>(slot).rows,
                         params_of<SampleRowsParams>(slot).num_rows, slot.task.tile_first, slot.task.tile_end);
    case TaskBody::accept:
      return accept_round(shared.sample.rest, params_of<AcceptRoundParams>(slot), slot.task.tile_first,
                          slot.task.tile_end);
    case TaskBody::context_norm:
      return compute_context_norm(shared.norm.rest, params_of<ContextNormParams>(slot), row_units_of(slot));
    case TaskBody::draft_embed:
      return compute_draft_embed(params_of<DraftEmbedParams>(slot), row_units_of(slot));
    case TaskBody::draft_sample:
      return sample_drafts(shared.sample.rest, params_of<DraftSampleParams>(slot),
                           row_units_of(slot));
  }
}

template <typename Tiles>
__device__ __forceinline__ uint32_t end_of_projection(const TaskSlot& slot, uint32_t ticket) {
  walk_projection<Tiles>(params_of<ProjectionParams>(slot), projection_units_of(slot), ticket,
                         [](const ProjectionUnits<Tiles>&, uint32_t, uint32_t, uint32_t,
                            const ItemTickets&) {});
  return ticket;
}

template <typename Rows>
__device__ __forceinline__ uint32_t end_of_router(const TaskSlot& slot, uint32_t ticket) {
  const auto& p = params_of<RouterLogitsParams>(slot);
  for_each_router_unit(slot, [&](uint32_t i) {
    ticket += RouterUnit<Rows>(p, router_unit_of(slot, i)).num_tickets();
  });
  return ticket;
}

__device__ __forceinline__ uint32_t end_of_expert_down(const TaskSlot& slot, uint32_t ticket) {
  walk_expert_down(params_of<ExpertDownParams>(slot), units_of(slot), ticket,
                   [](const DownUnits&, uint32_t, uint32_t, uint32_t, const ItemTickets&) {});
  return ticket;
}

/// Compute warps, when the task is skipped: the loader has not waited to hear of it.
__device__ __forceinline__ void skip_task(WorkShared& shared, const TaskSlot& slot, uint32_t& ticket) {
  uint32_t end = ticket;
  switch (slot.operands.body) {
    case TaskBody::projection:
    case TaskBody::gate_up:
    case TaskBody::heads:
      end = params_of<ProjectionParams>(slot).format == ProjectionFormat::fp8_e4m3
                ? end_of_projection<Fp8Tiles>(slot, ticket)
                : end_of_projection<Bf16Tiles>(slot, ticket);
      break;
    case TaskBody::router:
      end = params_of<RouterLogitsParams>(slot).format == RouterFormat::f32
                ? end_of_router<F32Rows>(slot, ticket)
                : end_of_router<Bf16Rows>(slot, ticket);
      break;
    case TaskBody::expert_down:
      if (!slot.is_route_known) return;
      end = end_of_expert_down(slot, ticket);
      break;
    default: return;
  }
  give_back(shared.projection.ring, ticket + threadIdx.x / 32, end);
  ticket = end;
}

}  // namespace mimo_rt::cuda
