#include "checkpoint/scan.h"

#include "core/checks.h"
#include "core/text.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace mimo_rt {
namespace {

// Finds the first element whose bits under `kMask` are all ones, several elements per 64-bit word:
// adding the mask's lowest bit carries into the bit above the mask, the element's sign bit, exactly
// then, and never further. Blocks are folded without branches; only one with a hit is walked.
template <typename Bits, Bits kMask>
std::optional<uint64_t> find_masked(std::span<const std::byte> bytes) noexcept {
  constexpr uint64_t kEach = ~uint64_t{0} / std::numeric_limits<Bits>::max();  // 1 per element
  constexpr uint64_t kMasks = kEach * kMask;
  constexpr uint64_t kLowest = kEach * static_cast<Bits>(kMask & (~kMask + 1));
  constexpr uint64_t kCarries = kEach << (8 * sizeof(Bits) - 1);
  constexpr size_t kBlock = 4096;
  // memcpy: the data of a tensor may be unaligned
  const auto is_bad = [&](size_t at) {
    Bits bits;
    std::memcpy(&bits, bytes.data() + at, sizeof(Bits));
    return (bits & kMask) == kMask;
  };
  for (size_t begin = 0; begin < bytes.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, bytes.size()), words_end = end / 8 * 8;
    uint64_t sums = 0;
    for (size_t at = begin; at < words_end; at += 8) {
      uint64_t word;
      std::memcpy(&word, bytes.data() + at, 8);
      sums |= (word & kMasks) + kLowest;
    }
    const size_t from = sums & kCarries ? begin : words_end;
    for (size_t at = from; at + sizeof(Bits) <= end; at += sizeof(Bits))
      if (is_bad(at)) return at / sizeof(Bits);
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
  return find_masked<uint8_t, 0x7f>(bytes);
}

std::optional<uint64_t> find_nonfinite_f32(std::span<const std::byte> bytes) noexcept {
  return find_masked<uint32_t, 0x7f800000u>(bytes);
}

std::optional<uint64_t> find_nonfinite_bf16(std::span<const std::byte> bytes) noexcept {
  return find_masked<uint16_t, 0x7f80>(bytes);
}

std::optional<uint64_t> find_nonfinite_f16(std::span<const std::byte> bytes) noexcept {
  return find_masked<uint16_t, 0x7c00>(bytes);
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
