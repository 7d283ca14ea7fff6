// The two expert tasks. Each is a pair of role functions that the kernels of expert_mlp.cu, and
// later the persistent kernel, call with the same arguments in the loader warp and in the compute
// warps.
//
// Order of the sums. gate_up: k ascending inside each of 8 segments of K, then the segments in
// order. down: k ascending inside a segment; for a token and a segment, its experts ascending, one
// FMA each; then the segments in order. The number of tokens, of blocks, of active experts and of
// segments in flight changes none of it.
#pragma once

#include "cuda/device/math/silu.cuh"
#include "cuda/device/tasks/expert_stream.cuh"

namespace mimo_rt::cuda {

/// One unit of gate_up: 8 columns of act for all slots of one active expert.
struct GateUpUnit {
  const uint8_t* row_group;
  uint32_t tiles_per_group;
  uint32_t slot_begin, num_slots;
  uint32_t first_column;

  __device__ static uint32_t count(const ExpertGateUpParams& p) {
    return *p.route.num_active * (p.width / kCudaGateUpRows);
  }
  __device__ static GateUpUnit get(const ExpertGateUpParams& p, uint32_t unit) {
    const uint32_t num_groups = p.width / kCudaGateUpRows;
    const uint32_t active_idx = unit / num_groups, group = unit % num_groups;
    const uint32_t num_tiles = (p.hidden_size + kCudaTileK - 1) / kCudaTileK;
    const uint64_t row_group = uint64_t{p.route.active_experts[active_idx]} * num_groups + group;
    const uint32_t slot_begin = p.route.slot_begin[active_idx];
    return {p.tiles + row_group * num_tiles * kCudaTileBytes, num_tiles, slot_begin,
            p.route.slot_begin[active_idx + 1] - slot_begin, group * kCudaGateUpRows};
  }
  __device__ TileRun run(uint32_t segment) const {
    return segment_run<Mxfp4Tiles>(row_group, tiles_per_group, segment, kGateUpSegments);
  }
  __device__ ItemTickets tickets(uint32_t first_ticket) const {
    return {first_ticket, kGateUpSegments,
            stages_per_item<Mxfp4Tiles>(tiles_per_group, kGateUpSegments)};
  }
};

__device__ inline void load_expert_gate_up(ExpertShared& shared, const ExpertGateUpParams& p,
                                           UnitRange range, uint32_t& ticket) {
  const uint64_t l2_policy = ptx::evict_first_policy();
  for (uint32_t u = range.first; u < range.limit(GateUpUnit::count(p)); u += range.stride) {
    const GateUpUnit unit = GateUpUnit::get(p, u);
    const ItemTickets tickets = unit.tickets(ticket);
    load_items<Mxfp4Tiles>(shared.ring, tickets, l2_policy,
                           [&](uint32_t item) { return unit.run(item); });
    ticket = tickets.end();
  }
}

/// act = silu(gate) * up from the partial sums of a unit.
__device__ inline void store_act(const ExpertShared& shared, const ExpertGateUpParams& p,
                                 const GateUpUnit& unit) {
  const uint32_t num_values = unit.num_slots * kCudaGateUpRows;
  for (uint32_t i = threadIdx.x; i < num_values; i += kComputeWarps * 32) {
    const uint32_t column = i / kCudaGateUpRows, row = i % kCudaGateUpRows;
    float gate = 0.0f, up = 0.0f;
#pragma unroll
    for (uint32_t segment = 0; segment < kGateUpSegments; ++segment) {
      const float* partial = shared.partials[segment * unit.num_slots + column];
      gate += partial[row];
      up += partial[kCudaGateUpRows + row];
    }
    p.act.row(unit.slot_begin + column)[unit.first_column + row] =
        static_cast<uint16_t>(ptx::to_bf16x2(silu(gate) * up, 0.0f));
  }
}

template <typename Activations = Bf16Activations, typename Params = ExpertGateUpParams>
__device__ void compute_expert_gate_up(ExpertShared& shared, const Params& p, UnitRange range,
                                       uint32_t& ticket) {
  const uint32_t segment = threadIdx.x / 32;  // one item per compute warp
  for (uint32_t u = range.first; u < range.limit(GateUpUnit::count(p)); u += range.stride) {
    const GateUpUnit unit = GateUpUnit::get(p, u);
    const ItemTickets tickets = unit.tickets(ticket);
    if (unit.num_slots > kMaxExpertTokens) ptx::trap();  // a broken route
    const Item item{segment, unit.run(segment), p.hidden_size, unit.num_slots,
                    segment * unit.num_slots};
    multiply_any_item<Activations>(
        shared, p, tickets, item,
        [&](uint32_t column) { return p.route.slot_token[unit.slot_begin + column]; });
    ticket = tickets.end();
    compute_barrier();
    store_act(shared, p, unit);
    compute_barrier();  // before the next unit overwrites the partial sums
  }
}

/// One unit of down: 16 columns of the sums for all tokens. Items run over the active experts and,
/// inside, over as many segments as the partial sums have room for; the rest follows in passes.
struct DownUnits {
  uint32_t tiles_per_group;
  uint64_t expert_bytes;
  uint32_t num_active, num_slots;
  uint32_t segments_per_pass;

  __device__ explicit DownUnits(const ExpertDownParams& p)
      : tiles_per_group((p.width + kCudaTileK - 1) / kCudaTileK),
        expert_bytes(uint64_t{p.hidden_size / kCudaTileRows} * tiles_per_group * kCudaTileBytes),
        num_active(*p.route.num_active),
        num_slots(p.route.slot_begin[num_active]) {
    if (num_slots > kMaxExpertSlots) ptx::trap();  // a broken route; the host has checked sizes
    const uint32_t room = num_slots == 0 ? p.num_segments : kMaxExpertSlots / num_slots;
    segments_per_pass = room < p.num_segments ? room : p.num_segments;
  }
  __device__ static uint32_t count(const ExpertDownParams& p) {
    return p.hidden_size / kCudaTileRows;
  }
  __device__ uint32_t pass_segments(const ExpertDownParams& p, uint32_t first_segment) const {
    const uint32_t rest = p.num_segments - first_segment;
    return rest < segments_per_pass ? rest : segments_per_pass;
  }
  /// Items of several stages fill their group with empty ones (ItemTickets says why).
  __device__ ItemTickets tickets(const ExpertDownParams& p, uint32_t first_ticket,
                                 uint32_t pass_size) const {
    const uint32_t num_stages = stages_per_item<Mxfp4Tiles>(tiles_per_group, p.num_segments);
    const uint32_t num_items = num_active * pass_size;
    const uint32_t num_groups = (num_items + kComputeWarps - 1) / kComputeWarps;
    return {first_ticket, num_stages > 1 ? num_groups * kComputeWarps : num_items, num_stages};
  }
  __device__ TileRun run(const ExpertDownParams& p, uint32_t row_group, uint32_t active_idx,
                         uint32_t segment) const {
    const uint8_t* expert = p.tiles + p.route.active_experts[active_idx] * expert_bytes;
    return segment_run<Mxfp4Tiles>(expert + uint64_t{row_group} * tiles_per_group * kCudaTileBytes,
                                   tiles_per_group, segment, p.num_segments);
  }
};

/// action(units, unit, first segment, segments, tickets) for every pass, in the order of tickets.
template <typename Action>
__device__ __forceinline__ void walk_expert_down(const ExpertDownParams& p, UnitRange range,
                                                 uint32_t& ticket, const Action& action) {
  const DownUnits units(p);
  for (uint32_t u = range.first; u < range.limit(DownUnits::count(p)); u += range.stride)
    for (uint32_t first = 0; first < p.num_segments; first += units.segments_per_pass) {
      const uint32_t pass_size = units.pass_segments(p, first);
      const ItemTickets tickets = units.tickets(p, ticket, pass_size);
      action(units, u, first, pass_size, tickets);
      ticket = tickets.end();
    }
}

__device__ inline void load_expert_down(ExpertShared& shared, const ExpertDownParams& p,
                                        UnitRange range, uint32_t& ticket) {
  const uint64_t l2_policy = ptx::evict_first_policy();
  walk_expert_down(p, range, ticket,
                   [&](const DownUnits& units, uint32_t u, uint32_t first, uint32_t pass_size,
                       const ItemTickets& tickets) {
                     load_items<Mxfp4Tiles>(shared.ring, tickets, l2_policy, [&](uint32_t item) {
                       const uint32_t active_idx = item / pass_size;
                       if (active_idx >= units.num_active) return TileRun{p.tiles, 0, 0};
                       return units.run(p, u, active_idx, first + item % pass_size);
                     });
                   });
}

/// Lists the slots of each token, ascending. All compute threads; a compute barrier must follow.
__device__ inline void list_token_slots(ExpertShared& shared, const ExpertDownParams& p,
                                        uint32_t num_slots) {
  const uint32_t token = threadIdx.x;
  if (token > p.num_tokens) return;  // one more than the tokens: the end of the last list
  uint32_t place = 0;
  for (uint32_t slot = 0; slot < num_slots; ++slot) place += p.route.slot_token[slot] < token;
  shared.token_begin[token] = static_cast<uint16_t>(place);
  for (uint32_t slot = 0; slot < num_slots; ++slot) {
    if (p.route.slot_token[slot] != token) continue;
    shared.token_slots[place] = static_cast<uint16_t>(slot);
    shared.token_weights[place++] = p.route.slot_weight[slot];
  }
}

/// This thread's outputs of a unit: one row, every 16th token.
struct DownSums {
  static constexpr uint32_t kTokenStep = kComputeWarps * 32 / kCudaTileRows;
  static constexpr uint32_t kTokens = kMaxExpertTokens / kTokenStep;
  float sum[kTokens];
  uint16_t before[kTokens];  ///< what the residual stream holds there

  __device__ static uint32_t row() { return threadIdx.x % kCudaTileRows; }
  __device__ static uint32_t token(uint32_t i) {
    return threadIdx.x / kCudaTileRows + i * kTokenStep;
  }

  /// Ahead of the barriers behind the products, which take as long as the way to memory.
  __device__ void load_residual(const ExpertDownParams& p, uint32_t unit) {
    if (!p.residual.data) return;
#pragma unroll
    for (uint32_t i = 0; i < kTokens; ++i)
      if (token(i) < p.num_tokens) before[i] = p.residual.row(token(i))[unit * kCudaTileRows + row()];
  }
  /// Adds the segments of one pass.
  __device__ void add(const ExpertShared& shared, const ExpertDownParams& p, uint32_t num_slots,
                      uint32_t pass_size) {
#pragma unroll
    for (uint32_t i = 0; i < kTokens; ++i) {
      if (token(i) >= p.num_tokens) break;
      const uint32_t begin = shared.token_begin[token(i)], end = shared.token_begin[token(i) + 1];
      for (uint32_t s = 0; s < pass_size; ++s) {
        float segment_sum = 0.0f;
        for (uint32_t j = begin; j < end; ++j)
          segment_sum =
              fmaf(shared.token_weights[j],
                   shared.partials[s * num_slots + shared.token_slots[j]][row()], segment_sum);
        sum[i] += segment_sum;
      }
    }
  }
  __device__ void store(const ExpertDownParams& p, uint32_t unit) const {
    const uint32_t column = unit * kCudaTileRows + row();
#pragma unroll
    for (uint32_t i = 0; i < kTokens; ++i) {
      if (token(i) >= p.num_tokens) break;
      if (p.residual.data) {
        const auto x = static_cast<uint16_t>(ptx::to_bf16x2(ptx::low_bf16(before[i]) + sum[i], 0.0f));
        p.residual.row(token(i))[column] = x;
        if (p.capture.rows) p.capture.rows[token(i)][p.capture.first_column + column] = x;
      } else {
        p.sums.row(token(i))[column] = sum[i];
      }
    }
  }
};

template <typename Activations = Bf16Activations, typename Params = ExpertDownParams>
__device__ void compute_expert_down(ExpertShared& shared, const Params& p, UnitRange range,
                                    uint32_t& ticket) {
  const uint32_t warp_idx = threadIdx.x / 32;
  const DownUnits units(p);
  list_token_slots(shared, p, units.num_slots);  // the first pass ends with a barrier
  for (uint32_t u = range.first; u < range.limit(DownUnits::count(p)); u += range.stride) {
    DownSums sums{};
    for (uint32_t first = 0; first < p.num_segments; first += units.segments_per_pass) {
      const uint32_t pass_size = units.pass_segments(p, first);
      const ItemTickets tickets = units.tickets(p, ticket, pass_size);
      for (uint32_t i = warp_idx; i < tickets.num_items; i += kComputeWarps) {
        const uint32_t active_idx = i / pass_size, s = i % pass_size;
        if (active_idx >= units.num_active) {
          give_back(shared.ring, tickets.ticket(i, 0), tickets.end());
          break;
        }
        const uint32_t slot = p.route.slot_begin[active_idx];
        const Item item{i, units.run(p, u, active_idx, first + s), p.width,
                        p.route.slot_begin[active_idx + 1] - slot, s * units.num_slots + slot};
        multiply_any_item<Activations>(
            shared, p, tickets, item, [&](uint32_t column) { return slot + column; });
      }
      ticket = tickets.end();
      sums.load_residual(p, u);
      compute_barrier();
      sums.add(shared, p, units.num_slots, pass_size);
      compute_barrier();  // before the next pass overwrites the partial sums
    }
    sums.store(p, u);
  }
}

}  // namespace mimo_rt::cuda
