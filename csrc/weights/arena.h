// One block of memory for all weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace mimo_rt {

/// Zeroed anonymous memory (or a file), aligned to 2 MiB, in huge pages where the kernel has them. Pages
/// exist from their first write on. Owns; moves.
class Arena {
 public:
  Arena() = default;
  /// @throws Error{out_of_memory}; `where` names the public operation
  Arena(uint64_t num_bytes, const char* where);
  /// Bytes of an open file instead, shared by all that map it, not to be written. Huge pages need `offset` to be a
  /// multiple of 2 MiB, a file system and a kernel that have them. Truncating the file makes reads fail with SIGBUS.
  /// @throws Error{io, out_of_memory}
  static Arena map_file(int descriptor, uint64_t offset, uint64_t num_bytes, const char* where);
  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&& other) noexcept;
  ~Arena();

  /// Tells the kernel that bytes of the file, as far as it has them, are about to be read: a huge page or a part of one.
  /// Where the file system has huge pages, one byte brings the whole page; any other hint would bring small pages,
  /// which then stay. Elsewhere the byte brings less, and a hint the rest.
  void read_ahead(uint64_t offset, uint64_t num_bytes) const noexcept;

  uint8_t* data() const { return data_; }
  uint64_t size_bytes() const { return size_bytes_; }

 private:
  void reserve(uint64_t num_bytes, const char* where);

  uint8_t* data_ = nullptr;  ///< in the mapping, aligned
  uint64_t size_bytes_ = 0;
  void* mapping_ = nullptr;
  uint64_t mapping_bytes_ = 0;
  bool wants_huge_ = false;  ///< of a file
};

/// Tells the kernel that `range` of a mapped file is about to be read. A hint: errors are ignored.
void prefetch_pages(std::span<const std::byte> range) noexcept;

}  // namespace mimo_rt
