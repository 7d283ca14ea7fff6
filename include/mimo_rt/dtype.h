// Element types of tensors, on disk and packed.
#pragma once

#include <mimo_rt/api.h>

#include <cstdint>
#include <string_view>

namespace mimo_rt {

// X-macro: name, bits per element, name in a safetensors header.
#define MIMO_RT_DTYPES(X)    \
  X(f64, 64, "F64")          \
  X(f32, 32, "F32")          \
  X(f16, 16, "F16")          \
  X(bf16, 16, "BF16")        \
  X(fp8_e4m3, 8, "F8_E4M3")  \
  X(fp8_e5m2, 8, "F8_E5M2")  \
  X(e8m0, 8, "F8_E8M0")      \
  X(fp4_e2m1, 4, "F4")       \
  X(i64, 64, "I64")          \
  X(i32, 32, "I32")          \
  X(i16, 16, "I16")          \
  X(i8, 8, "I8")             \
  X(u64, 64, "U64")          \
  X(u32, 32, "U32")          \
  X(u16, 16, "U16")          \
  X(u8, 8, "U8")             \
  X(boolean, 8, "BOOL")

enum class DType : uint8_t {
#define MIMO_RT_X(name, bits, file_name) name,
  MIMO_RT_DTYPES(MIMO_RT_X)
#undef MIMO_RT_X
};

/// "bf16", "fp8_e4m3", …
MIMO_RT_API std::string_view dtype_name(DType dtype) noexcept;

/// Bits per element: 4 for `fp4_e2m1`.
MIMO_RT_API uint32_t dtype_bits(DType dtype) noexcept;

}  // namespace mimo_rt
