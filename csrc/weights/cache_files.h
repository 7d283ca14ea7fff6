// The files of a packed cache: their names, writing them so that others see all or nothing, and who writes.
//
//   <32 digits>.packed    an arena (packed_file.h), named by its key
//   <32 digits>.content   64 digits: the hash of the contents of the files that have the stamps of its name
//   <32 digits>.lock      held by the process that writes the arena of this name
//   <name>.<writer>.tmp   being written, or left by a process that died
#pragma once

#include "core/sha256.h"

#include <filesystem>
#include <functional>
#include <string>
#include <utility>

namespace mimo_rt {

inline constexpr const char* kArenaSuffix = ".packed";
inline constexpr const char* kContentSuffix = ".content";
inline constexpr const char* kLockSuffix = ".lock";
inline constexpr const char* kTemporarySuffix = ".tmp";

/// The name of a file of the cache.
std::string cache_file_name(const Digest& digest, const char* suffix);
/// Whether a name has one of the forms above.
bool is_cache_file_name(const std::string& name);

/// An open descriptor, or none. Moves.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  explicit operator bool() const { return number_ >= 0; }
  int number() const { return number_; }

 private:
  int number_ = -1;
};

/// Opens for reading, never through a link; without a descriptor and with `errno` set when that is refused.
Descriptor open_cache_file(const std::filesystem::path& path);

/// Writes `name` by way of a temporary file: `write` gets its descriptor and must leave its bytes on the disk.
/// @throws Error{io}, and what `write` throws; then nothing is left behind
void write_cache_file(const std::filesystem::path& directory, const std::string& name, const char* where,
                      const std::function<void(int descriptor)>& write);

/// Removes temporary files for `name` that writers left behind; errors are ignored.
void remove_leftovers(const std::filesystem::path& directory, const std::string& name) noexcept;

/// The right to write one file, among those who ask: a lock that ends with its process and the children that this
/// process forked. Files are replaced as a whole: without it writers do work twice, and one that has it may remove
/// what others have not finished (`remove_leftovers`).
class WriterLock {
 public:
  enum class State : uint8_t { held, busy, unavailable };

  explicit WriterLock(std::filesystem::path path) : path_(std::move(path)) {}
  WriterLock(const WriterLock&) = delete;
  WriterLock& operator=(const WriterLock&) = delete;
  ~WriterLock();

  /// Never waits. `busy`: another has it, or gave it back just now. `unavailable`: no right to create the file, or a
  /// file system without locks.
  State try_lock();

 private:
  std::filesystem::path path_;
  Descriptor descriptor_;
  bool is_held_ = false;
};

}  // namespace mimo_rt
