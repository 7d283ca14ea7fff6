// The packed cache: weights as the CPU kernels read them, in files that later starts map instead of packing again.
// The pages are shared by all processes, and the system may drop them and read them again when memory is short.
#pragma once

#include <mimo_rt/api.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace mimo_rt {

/// What the cache did for one part of a model when it was opened. A cache that fails costs nothing but its benefit:
/// the weights are packed as without one.
struct PackedCacheReport {
  enum class State : uint8_t {
    off,      ///< no cache was asked for
    hit,      ///< the weights were found and checked
    written,  ///< packed, and kept for the next start
    failed,   ///< packed, and not kept: see `message`
  };
  std::string part;     ///< "target" or "draft"
  State state = State::off;
  std::filesystem::path file;  ///< of the cache; empty when there is no directory for it
  std::string message;  ///< why it failed, or why an older file was replaced
};
MIMO_RT_API std::string_view packed_cache_state_name(PackedCacheReport::State state) noexcept;

/// One file of a packed cache.
struct PackedCacheEntry {
  std::filesystem::path file;
  uint64_t num_bytes = 0;         ///< of the file
  bool is_usable = false;         ///< by this version, as far as its header tells
  std::string part;               ///< "target" or "draft"; empty when the header is not sound
  std::filesystem::path source_dir;  ///< the checkpoint it was made from
  std::string library_version;    ///< that made it
};

/// Where this library keeps what it can make again: `$MIMO_RT_CACHE`, else `$XDG_CACHE_HOME/mimo_rt`, else
/// `~/.cache/mimo_rt`.
MIMO_RT_API std::filesystem::path cache_directory();
/// What `EngineOptions::packed_cache` means: a directory, or empty for "none". "auto" is `cache_directory()`/packed.
MIMO_RT_API std::filesystem::path packed_cache_directory(const std::string& packed_cache);

/// The files of the packed cache in `directory`, by name; none when there is no such directory.
/// @throws Error{io}
MIMO_RT_API std::vector<PackedCacheEntry> list_packed_cache(const std::filesystem::path& directory);

/// Removes all files of the packed cache in `directory`, and no other ones. Engines that map them keep them until they
/// end. Returns the bytes freed. @throws Error{io} naming the first file that cannot be removed
MIMO_RT_API uint64_t clear_packed_cache(const std::filesystem::path& directory);

}  // namespace mimo_rt
