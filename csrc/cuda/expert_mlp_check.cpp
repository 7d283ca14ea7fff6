// Checks of the expert kernels' arguments. No CUDA in here: they are tested on every machine.
#include "core/checks.h"
#include "cuda/expert_mlp.h"

namespace mimo_rt::cuda {
namespace {

constexpr uint32_t kMaxWidth = 1u << 20;  // 32-bit tile arithmetic holds far beyond

void check_size(const char* where, const char* name, uint32_t size) {
  MIMO_RT_CHECK(size != 0 && size % 32 == 0 && size <= kMaxWidth, unsupported_shape, where, name,
                ": expected a multiple of 32, 32 .. ", kMaxWidth, ", got ", size);
}

void check_pointer(const char* where, const char* name, const void* pointer, uint32_t alignment) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  MIMO_RT_CHECK(pointer != nullptr, invalid_argument, where, name, ": expected memory, got null");
  MIMO_RT_CHECK(address % alignment == 0, invalid_argument, where, name,
                ": expected an address that is a multiple of ", alignment, ", got one that is ",
                address % alignment, " beyond");
}

template <typename T>
void check_rows(const char* where, const char* name, const RowsView<T>& rows, uint32_t width) {
  constexpr uint32_t kStep = 16 / sizeof(T);
  check_pointer(where, name, rows.data, 16);
  MIMO_RT_CHECK(rows.stride >= width && rows.stride % kStep == 0, invalid_argument, where, name,
                ".stride: expected at least ", width, " elements and a multiple of ", kStep,
                ", got ", rows.stride);
}

template <typename Params>
void check_common(const char* where, const Params& params) {
  check_size(where, "hidden_size", params.hidden_size);
  check_size(where, "width", params.width);
  MIMO_RT_CHECK(params.num_tokens >= 1 && params.num_tokens <= kMaxExpertTokens, capacity, where,
                "num_tokens: expected 1 .. ", kMaxExpertTokens, ", got ", params.num_tokens);
  MIMO_RT_CHECK(params.max_slots <= kMaxExpertSlots, capacity, where,
                "max_slots: expected at most ", kMaxExpertSlots, ", got ", params.max_slots);
  check_pointer(where, "tiles", params.tiles, 16);
  check_pointer(where, "route.num_active", params.route.num_active, 4);
  check_pointer(where, "route.active_experts", params.route.active_experts, 4);
  check_pointer(where, "route.slot_begin", params.route.slot_begin, 4);
  check_pointer(where, "route.slot_token", params.route.slot_token, 4);
}

}  // namespace

void check_expert_gate_up(const ExpertGateUpParams& params) {
  constexpr const char* kWhere = "cuda.expert_gate_up";
  check_common(kWhere, params);
  check_rows(kWhere, "x", params.x, params.hidden_size);
  check_rows(kWhere, "act", params.act, params.width);
}

void check_expert_down(const ExpertDownParams& params) {
  constexpr const char* kWhere = "cuda.expert_down";
  check_common(kWhere, params);
  check_pointer(kWhere, "route.slot_weight", params.route.slot_weight, 4);
  check_rows(kWhere, "act", params.act, params.width);
  check_rows(kWhere, "sums", params.sums, params.hidden_size);
  MIMO_RT_CHECK(params.num_segments >= 1 && params.num_segments <= kMaxDownSegments,
                unsupported_shape, kWhere, "num_segments: expected 1 .. ", kMaxDownSegments,
                ", got ", params.num_segments);
}

}  // namespace mimo_rt::cuda
