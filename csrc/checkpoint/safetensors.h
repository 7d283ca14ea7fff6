// The header of a safetensors file: 8 bytes of little-endian length N, then N bytes of JSON, then
// the tensor bytes. Stricter than the reference reader: see the numbered checks in safetensors.cpp.
#pragma once

#include <mimo_rt/dtype.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mimo_rt {

struct HeaderTensor {
  std::string name;
  DType dtype = DType::u8;
  std::vector<uint64_t> shape;
  uint64_t begin = 0, end = 0;  ///< bytes of the file, absolute
};

/// Bytes of the length field in front of the header.
inline constexpr uint64_t kHeaderLengthBytes = 8;

/// Reads the length field and checks it against the file's size.
/// @throws Error{bad_format}
uint64_t header_bytes(std::span<const std::byte, kHeaderLengthBytes> length_field,
                      uint64_t file_bytes, uint64_t max_header_bytes, std::string_view source);

/// Parses the JSON of a header. `json` is the whole header, padding included. The result is sorted
/// by position; the tensors cover the rest of the file exactly.
/// @throws Error{bad_format}; messages begin with `source`
std::vector<HeaderTensor> parse_header(std::span<const std::byte> json, uint64_t file_bytes,
                                       std::string_view source);

}  // namespace mimo_rt
