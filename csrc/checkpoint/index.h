// model.safetensors.index.json: which shard holds which tensor.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mimo_rt {

struct IndexEntry {
  std::string tensor_name;
  uint32_t file_idx = 0;  ///< into `CheckpointIndex::file_names`
};

struct CheckpointIndex {
  std::vector<std::string> file_names;  ///< sorted, each a plain file name
  std::vector<IndexEntry> entries;      ///< sorted by tensor name, each name once
};

/// Parses an index. `metadata` (total_size) is advice and not read.
/// @throws Error{bad_format}; messages begin with `source`
CheckpointIndex parse_index(std::string_view json, std::string_view source);

}  // namespace mimo_rt
