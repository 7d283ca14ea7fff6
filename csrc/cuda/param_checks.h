// Checks of kernel arguments that all kernels need. No CUDA in here.
#pragma once

#include "core/checks.h"
#include "cuda/device_memory.h"
#include "cuda/kernel_params.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kMaxWidth = 1u << 20;  // 32-bit tile arithmetic holds far beyond

inline void check_size(const char* where, const char* name, uint32_t size, uint32_t multiple = 32) {
  MIMO_RT_CHECK(size != 0 && size % multiple == 0 && size <= kMaxWidth, unsupported_shape, where,
                name, ": expected a multiple of ", multiple, ", ", multiple, " .. ", kMaxWidth,
                ", got ", size);
}

inline void check_num_rows(const char* where, const char* name, uint32_t num_rows,
                           uint32_t limit = kMaxTokens) {
  MIMO_RT_CHECK(num_rows >= 1 && num_rows <= limit, capacity, where, name, ": expected 1 .. ",
                limit, ", got ", num_rows);
}
inline void check_num_tokens(const char* where, uint32_t num_tokens) {
  check_num_rows(where, "num_tokens", num_tokens);
}

inline void check_pointer(const char* where, const char* name, const void* pointer,
                          uint32_t alignment) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  MIMO_RT_CHECK(pointer != nullptr, invalid_argument, where, name, ": expected memory, got null");
  MIMO_RT_CHECK(address % alignment == 0, invalid_argument, where, name,
                ": expected an address that is a multiple of ", alignment, ", got one that is ",
                address % alignment, " beyond");
  PlaceChecks::check(where, name, pointer);
}

template <typename T>
void check_rows(const char* where, const char* name, const RowsView<T>& rows, uint32_t width) {
  constexpr uint32_t kStep = 16 / sizeof(T);
  check_pointer(where, name, rows.data, 16);
  MIMO_RT_CHECK(rows.stride >= width && rows.stride % kStep == 0, invalid_argument, where, name,
                ".stride: expected at least ", width, " elements and a multiple of ", kStep,
                ", got ", rows.stride);
}

inline void check_capture(const char* where, const CaptureOutput& capture) {
  if (capture.rows) check_pointer(where, "capture.rows", capture.rows, sizeof(void*));
}

}  // namespace mimo_rt::cuda
