// What lies in a packed cache, for those who look after it.
#include <mimo_rt/packed_cache.h>

#include "core/checks.h"
#include "core/text.h"
#include "weights/cache_files.h"
#include "weights/packed.h"
#include "weights/packed_file.h"

#include <algorithm>

namespace mimo_rt {
namespace {

namespace fs = std::filesystem;

/// The files that belong to a cache, by name.
std::vector<fs::path> cache_files(const fs::path& directory, const char* where) {
  std::vector<fs::path> files;
  std::error_code error;
  if (fs::status(directory, error).type() == fs::file_type::not_found) return files;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error))
    if (std::error_code ignored; entry->symlink_status(ignored).type() == fs::file_type::regular &&
                                 is_cache_file_name(entry->path().filename().string()))
      files.push_back(entry->path());
  MIMO_RT_CHECK(!error, io, where, printable(directory.string(), 300), ": ", error.message());
  std::ranges::sort(files);
  return files;
}

uint64_t size_of(const fs::path& file) {
  std::error_code error;
  const uint64_t size = fs::file_size(file, error);
  return error ? 0 : size;
}

}  // namespace

std::vector<PackedCacheEntry> list_packed_cache(const fs::path& directory) {
  constexpr const char* kWhere = "list_packed_cache";
  std::vector<PackedCacheEntry> entries;
  for (const fs::path& file : cache_files(directory, kWhere)) {
    if (file.extension() != kArenaSuffix) continue;
    PackedCacheEntry& entry = entries.emplace_back();
    entry.file = file;
    entry.num_bytes = size_of(file);
    const Descriptor opened = open_cache_file(file);
    if (!opened) continue;
    try {
      const PackedFileInfo info =
          read_packed_info(opened.number(), file.filename().string(), kWhere);
      entry.is_usable = info.layout_version == kPackedLayoutVersion &&
                        file.filename() == cache_file_name(info.key, kArenaSuffix);
      if (is_valid_utf8(info.part)) entry.part = info.part;
      if (is_valid_utf8(info.library_version)) entry.library_version = info.library_version;
      entry.source_dir = info.source_dir;
    } catch (const Error&) {  // a file that no start would use
    }
  }
  return entries;
}

uint64_t clear_packed_cache(const fs::path& directory) {
  constexpr const char* kWhere = "clear_packed_cache";
  uint64_t freed_bytes = 0;
  for (const fs::path& file : cache_files(directory, kWhere)) {
    const uint64_t num_bytes = size_of(file);
    std::error_code error;
    const bool is_removed = fs::remove(file, error);
    MIMO_RT_CHECK(!error, io, kWhere, printable(file.string(), 300), ": ", error.message());
    if (is_removed) freed_bytes += num_bytes;
  }
  return freed_bytes;
}

}  // namespace mimo_rt
