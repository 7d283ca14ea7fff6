// What the select_experts task writes for the expert tasks of the same layer: who is active, and which tokens go where.
//
// A *slot* is one (token, chosen expert) pair. Slots are sorted by expert, then by token, so the rows of one expert are
// contiguous in `act` and the order of every sum over experts is ascending.
#pragma once

#include <cstdint>
#include <span>

namespace mimo_rt {

/// Slots of a route that a tag edge takes: every reader fetches all its words.
inline constexpr uint32_t kMaxTaggedSlots = 256;

/// Views into the `route` buffer for a model with num_experts and a plan with max_slots = max_tokens * experts_per_token.
struct RouteTable {
  uint32_t* num_active;      ///< [1]
  uint32_t* active_experts;  ///< [num_experts] ascending; num_active valid
  uint32_t* slot_begin;      ///< [num_experts + 1] slots of active_experts[i] are [slot_begin[i], slot_begin[i + 1])
  uint32_t* slot_token;      ///< [max_slots]
  float* slot_weight;        ///< [max_slots]

  static constexpr uint64_t bytes(uint32_t num_experts, uint32_t max_slots) {
    return 4 * (uint64_t{1} + num_experts + num_experts + 1 + max_slots + max_slots);
  }
#if defined(__CUDACC__)
  __host__ __device__
#endif
  static RouteTable view(uint8_t* buffer, uint32_t num_experts, uint32_t max_slots) {
    auto* words = reinterpret_cast<uint32_t*>(buffer);
    RouteTable table{};
    table.num_active = words;
    table.active_experts = words + 1;
    table.slot_begin = table.active_experts + num_experts;
    table.slot_token = table.slot_begin + num_experts + 1;
    table.slot_weight = reinterpret_cast<float*>(table.slot_token + max_slots);
    return table;
  }
};

}  // namespace mimo_rt
