// The shared memory of all kinds of tasks, their params, and which units a task's tiles are.
#pragma once

#include "cuda/device/persistent/task_slots.cuh"
#include "cuda/device/tasks/accept_round.cuh"
#include "cuda/device/tasks/attend_rows.cuh"
#include "cuda/device/tasks/draft_heads.cuh"
#include "cuda/device/tasks/expert_mlp.cuh"
#include "cuda/device/tasks/projection.cuh"
#include "cuda/device/tasks/router.cuh"
#include "cuda/device/tasks/sample_rows.cuh"
#include "cuda/device/tasks/select_experts.cuh"

namespace mimo_rt::cuda {

/// For tasks without weights: the loader fills the ring for the next task meanwhile.
template <typename Shared>
struct BesideRing {
  WeightRing ring;
  Shared rest;
};

struct PublishShared {
  SelectShared select;
  uint32_t route[kMaxRouteWords];  ///< before it goes out
};

/// One ring for all kinds: all begin with it. What is behind it belongs to the task at hand.
union WorkShared {
  AttendRowsShared attention;
  ExpertShared expert;
  ProjectionShared projection;
  RouterShared router;
  BesideRing<NormShared> norm;
  BesideRing<PublishShared> select;
  BesideRing<DrawShared> sample;
};
static_assert(offsetof(AttentionShared, ring) == 0 && offsetof(ExpertShared, ring) == 0 &&
              offsetof(ProjectionShared, ring) == 0 && offsetof(RouterShared, ring) == 0);

template <typename Params>
__device__ __forceinline__ const Params& params_of(const TaskSlot& slot) {
  return *reinterpret_cast<const Params*>(slot.operands.params);
}

/// Tiles that are units: `tile_end` of them, or `tile_end` for each row.
__device__ __forceinline__ UnitRange units_of(const TaskSlot& slot) {
  return {slot.task.tile_first, slot.task.tile_stride, slot.task.tile_end};
}
__device__ __forceinline__ UnitRange row_units_of(const TaskSlot& slot) {
  return {slot.task.tile_first, slot.task.tile_stride};
}

/// Of a projection, whose tiles are neighbours; for gate_up a tile is two units, for heads the row
/// groups of one.
__device__ __forceinline__ UnitRange projection_units_of(const TaskSlot& slot) {
  if (slot.operands.body == TaskBody::heads)
    return head_units(*params_of<HeadsParams>(slot).shape, slot.task);
  const uint32_t per_tile = slot.operands.body == TaskBody::gate_up ? 2 : 1;
  return {slot.task.tile_first * per_tile, 1, slot.task.tile_end * per_tile};
}

/// Units of a router task: tiles are 16 experts and neighbours, for each group of tokens.
__device__ __forceinline__ uint32_t num_units_per_router_group(const TaskSlot& slot) {
  constexpr uint32_t kPerTile = 16 / kRouterRows;
  const uint32_t num_experts = params_of<RouterLogitsParams>(slot).num_experts;
  const uint32_t num_units = (num_experts + kRouterRows - 1) / kRouterRows;
  const uint32_t begin = slot.task.tile_first * kPerTile, end = slot.task.tile_end * kPerTile;
  return (end < num_units ? end : num_units) - begin;
}
__device__ __forceinline__ uint32_t num_router_units(const TaskSlot& slot) {
  const uint32_t num_tokens = params_of<RouterLogitsParams>(slot).num_tokens;
  return (num_tokens + kRouterTokens - 1) / kRouterTokens * num_units_per_router_group(slot);
}
/// The unit that is the `i`th of the task.
__device__ __forceinline__ uint32_t router_unit_of(const TaskSlot& slot, uint32_t i) {
  const uint32_t num_experts = params_of<RouterLogitsParams>(slot).num_experts;
  const uint32_t num_units = (num_experts + kRouterRows - 1) / kRouterRows;
  const uint32_t per_group = num_units_per_router_group(slot);
  return i / per_group * num_units + slot.task.tile_first * (16 / kRouterRows) + i % per_group;
}

/// Of tile `t` of an expert_gate_up task: a share of an expert's pairs of row groups, each of which
/// is two units.
__device__ __forceinline__ UnitRange expert_units_of(const TaskSlot& slot, uint32_t t) {
  const uint32_t num_units = params_of<ExpertGateUpParams>(slot).width / kCudaGateUpRows;
  const uint32_t num_shares = slot.task.tile_end, num_pairs = (num_units + 1) / 2;
  const uint32_t first = t / num_shares * num_units, share = t % num_shares;
  const uint32_t end = 2 * share_begin(share + 1, num_shares, num_pairs);
  return {first + 2 * share_begin(share, num_shares, num_pairs), 1,
          first + (end < num_units ? end : num_units)};
}

/// run(t) for every tile of an expert_gate_up task, after `ready`. Limits are worked out for each:
/// the products need the registers.
template <typename Run>
__device__ __forceinline__ void for_each_expert_tile(const TaskSlot& slot, const Run& run) {
  const auto& p = params_of<ExpertGateUpParams>(slot);
  for (uint32_t t = slot.task.tile_first; t < slot.task.tile_end * *p.route.num_active;
       t += slot.task.tile_stride)
    run(t);
}

/// run(i) for every unit of a router task.
template <typename Run>
__device__ __forceinline__ void for_each_router_unit(const TaskSlot& slot, const Run& run) {
  for (uint32_t i = 0; i < num_router_units(slot); ++i) run(i);
}

}  // namespace mimo_rt::cuda
