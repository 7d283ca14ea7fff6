// What an open checkpoint holds.
#pragma once

#include <mimo_rt/checkpoint.h>

#include "checkpoint/mapped_file.h"
#include "core/file.h"

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mimo_rt {

/// One file of a checkpoint, as it was when it was opened.
struct Shard {
  std::string name;
  FileStamp stamp;
  MappedFile file;
};

struct Checkpoint::Impl {
  std::filesystem::path directory;
  std::vector<Shard> shards;
  std::vector<TensorInfo> tensors;  ///< sorted by name
  std::vector<std::unique_ptr<std::byte[]>> memory = {};  ///< of tensors that are in no file

  static Checkpoint finish(std::unique_ptr<Impl> impl) { return Checkpoint(std::move(impl)); }
};

}  // namespace mimo_rt
