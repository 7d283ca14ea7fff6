// The pickle inside a file of torch.save: read as data, never executed. Only the opcodes and the
// globals of a dict with numbers and plain tensors are known.
#pragma once

#include "checkpoint/stored_zip.h"

#include <mimo_rt/dtype.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mimo_rt {

/// A value of the pickle. Others are referred to by their index in `Pickle::values`.
struct PickleValue {
  enum class Kind : uint8_t {
    mark, boolean, integer, text, tuple, dict, dtype_global, rebuild_global, ordered_dict_global,
    storage, tensor, ordered_dict,
  } kind = Kind::mark;
  int64_t number = 0;            ///< boolean, integer; elements of a storage
  std::string text;              ///< text; key of a storage
  DType dtype = DType::u8;       ///< dtype_global, storage
  std::vector<uint32_t> items;   ///< tuple; dict: key, value, key, value; tensor: storage
  std::vector<int64_t> numbers;  ///< tensor: offset, then sizes, then as many strides
};

struct Pickle {
  std::vector<PickleValue> values;
  uint32_t root = 0;
};

/// Reads protocol 2, at most `kMaxPickleBytes`.
Pickle read_torch_pickle(std::span<const std::byte> bytes, const FailFile& fail_file);

inline constexpr size_t kMaxPickleBytes = 65536;

}  // namespace mimo_rt
