// SHA-256 (FIPS 180-4): names contents so that two different ones never share a name.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace mimo_rt {

using Digest = std::array<uint8_t, 32>;

class Sha256 {
 public:
  static constexpr size_t kBlockBytes = 64;

  /// `use_extensions`: the processor's SHA instructions where it has them; false: plain C++, for tests.
  explicit Sha256(bool use_extensions = true);

  void update(std::span<const std::byte> bytes);
  void update(std::string_view text) { update(std::as_bytes(std::span(text))); }
  /// Eight bytes, little-endian.
  void update_number(uint64_t number);
  /// The text behind its size: no two sequences of fields give the same bytes.
  void update_field(std::string_view text) {
    update_number(text.size());
    update(text);
  }
  /// May be called once.
  Digest finish();

 private:
  using Compress = void (*)(uint32_t* state, const std::byte* blocks, size_t num_blocks);

  Compress compress_;
  std::array<uint32_t, 8> state_;
  std::array<std::byte, kBlockBytes> pending_;  ///< the first `num_bytes_ % 64` are in use
  uint64_t num_bytes_ = 0;
};

/// Lower-case hexadecimal digits of `bytes`.
std::string to_hex(std::span<const uint8_t> bytes);

}  // namespace mimo_rt
