#include "checkpoint/scan.h"

#include "core/checks.h"
#include "core/text.h"

#include <algorithm>
#include <cstring>

namespace mimo_rt {
namespace {

// Finds the first element for which `is_bad(bits)` holds. A block is first folded into one flag, a
// loop without branches that the compiler can vectorise; only a block with a hit is walked.
template <typename Bits, typename IsBad>
std::optional<uint64_t> find_first(std::span<const std::byte> bytes, IsBad is_bad) noexcept {
  constexpr size_t kBlock = 4096 / sizeof(Bits);
  const size_t count = bytes.size() / sizeof(Bits);
  const auto load = [&](size_t i) {
    Bits bits;  // memcpy: the data of a tensor may be unaligned
    std::memcpy(&bits, bytes.data() + i * sizeof(Bits), sizeof(Bits));
    return bits;
  };
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t end = std::min(begin + kBlock, count);
    Bits any = 0;
    for (size_t i = begin; i < end; ++i) any = static_cast<Bits>(any | Bits{is_bad(load(i))});
    if (!any) continue;
    for (size_t i = begin; i < end; ++i)
      if (is_bad(load(i))) return i;
  }
  return std::nullopt;
}

std::optional<uint64_t> find_bad(DType as, std::span<const std::byte> bytes) noexcept {
  switch (as) {
    case DType::e8m0: return find_e8m0_nan(bytes);
    case DType::fp8_e4m3: return find_fp8_e4m3_nan(bytes);
    case DType::f32: return find_nonfinite_f32(bytes);
    case DType::bf16: return find_nonfinite_bf16(bytes);
    case DType::f16: return find_nonfinite_f16(bytes);
    default: return std::nullopt;
  }
}

}  // namespace

std::optional<uint64_t> find_e8m0_nan(std::span<const std::byte> bytes) noexcept {
  if (bytes.empty()) return std::nullopt;
  const void* found = std::memchr(bytes.data(), 0xff, bytes.size());
  if (!found) return std::nullopt;
  return static_cast<uint64_t>(static_cast<const std::byte*>(found) - bytes.data());
}

std::optional<uint64_t> find_fp8_e4m3_nan(std::span<const std::byte> bytes) noexcept {
  // Eight codes at a time: with the sign bits cleared, adding 1 sets bit 7 only of 0x7f.
  const size_t whole = bytes.size() / 8 * 8;
  const auto word = find_first<uint64_t>(bytes.first(whole), [](uint64_t codes) {
    constexpr uint64_t kOnes = 0x0101010101010101u;
    return (((codes & (kOnes * 0x7f)) + kOnes) & (kOnes * 0x80)) != 0;
  });
  const uint64_t begin = word ? *word * 8 : whole;
  for (uint64_t i = begin; i < bytes.size(); ++i)
    if ((bytes[i] & std::byte{0x7f}) == std::byte{0x7f}) return i;
  return std::nullopt;
}

std::optional<uint64_t> find_nonfinite_f32(std::span<const std::byte> bytes) noexcept {
  return find_first<uint32_t>(
      bytes, [](uint32_t bits) { return (bits & 0x7f800000u) == 0x7f800000u; });
}

std::optional<uint64_t> find_nonfinite_bf16(std::span<const std::byte> bytes) noexcept {
  return find_first<uint16_t>(bytes, [](uint16_t bits) { return (bits & 0x7f80u) == 0x7f80u; });
}

std::optional<uint64_t> find_nonfinite_f16(std::span<const std::byte> bytes) noexcept {
  return find_first<uint16_t>(bytes, [](uint16_t bits) { return (bits & 0x7c00u) == 0x7c00u; });
}

void check_finite(const TensorInfo& tensor, DType as, std::span<const std::byte> bytes,
                  uint64_t first_element) {
  const std::optional<uint64_t> bad = find_bad(as, bytes);
  if (!bad) return;
  const uint64_t element_bytes = dtype_bits(as) / 8;
  std::string got = "0x";
  for (uint64_t i = element_bytes; i-- > 0;) {
    const auto byte = std::to_integer<unsigned>(bytes[*bad * element_bytes + i]);
    got += "0123456789abcdef"[byte >> 4];
    got += "0123456789abcdef"[byte & 15];
  }
  fail(ErrorCode::bad_format, "Checkpoint.check", "tensor ", printable(tensor.name), " of ",
       printable(tensor.file_name), ", element ", first_element + *bad, ": expected a finite ",
       dtype_name(as), ", got code ", got);
}

void check_finite(const TensorInfo& tensor, DType as) { check_finite(tensor, as, tensor.data, 0); }

}  // namespace mimo_rt
