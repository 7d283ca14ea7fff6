// The bytes of one shard: mapped read-only, or read into memory.
#pragma once

#include "core/file.h"

#include <cstddef>
#include <span>

namespace mimo_rt {

/// Owns a private read-only mapping. A mapped file that another process truncates makes later reads
/// fail with SIGBUS; a file read into memory cannot change.
class MappedFile {
 public:
  /// Maps all of `file`, or copies it when `use_mmap` is false.
  /// @throws Error{io, out_of_memory}
  static MappedFile map(const InputFile& file, bool use_mmap);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {base_, size_}; }
  bool contains(const std::byte* address) const;
  /// Drops the resident pages of `range`; they are read again on access. No effect on copies.
  void release_pages(std::span<const std::byte> range) const noexcept;

 private:
  MappedFile(std::byte* base, size_t size, bool is_file)
      : base_(base), size_(size), is_file_(is_file) {}

  std::byte* base_ = nullptr;
  size_t size_ = 0;
  bool is_file_ = false;
};

}  // namespace mimo_rt
