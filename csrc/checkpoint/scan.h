// Looks for codes that may not occur in a checkpoint: NaN and infinity in scales, NaN in FP8
// weights. Runs at memory speed; called where the bytes are read anyway.
#pragma once

#include <mimo_rt/checkpoint.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace mimo_rt {

/// Index of the first E8M0 NaN (0xFF).
std::optional<uint64_t> find_e8m0_nan(std::span<const std::byte> bytes) noexcept;
/// Index of the first E4M3 NaN (0x7F or 0xFF).
std::optional<uint64_t> find_fp8_e4m3_nan(std::span<const std::byte> bytes) noexcept;
/// Index of the first element that is NaN or infinite; little-endian, any alignment.
std::optional<uint64_t> find_nonfinite_f32(std::span<const std::byte> bytes) noexcept;
std::optional<uint64_t> find_nonfinite_bf16(std::span<const std::byte> bytes) noexcept;
std::optional<uint64_t> find_nonfinite_f16(std::span<const std::byte> bytes) noexcept;

/// Checks bytes of `tensor` that begin at element `first_element` (whole elements of its data).
/// `as` is the meaning of the bytes: U8 scales of MXFP4 are `e8m0`. Types without such codes pass.
/// @throws Error{bad_format} naming the tensor, its file and the element.
void check_finite(const TensorInfo& tensor, DType as, std::span<const std::byte> bytes,
                  uint64_t first_element);
/// The whole tensor.
void check_finite(const TensorInfo& tensor, DType as);

}  // namespace mimo_rt
