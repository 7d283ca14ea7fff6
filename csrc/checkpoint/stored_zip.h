// The files inside a zip archive whose entries are stored, not compressed: what torch.save writes.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mimo_rt {

struct ZipEntry {
  std::string name;
  std::span<const std::byte> data;  ///< inside the archive
};

/// Calls for a fault of a file; must throw. The text continues "<file>: ".
using FailFile = std::function<void(const std::string& text)>;

/// Reads the central directory. Compressed, encrypted and duplicate entries, archives of several
/// parts and names that are not printable ASCII are refused.
std::vector<ZipEntry> read_stored_zip(std::span<const std::byte> file, const FailFile& fail_file);

}  // namespace mimo_rt
