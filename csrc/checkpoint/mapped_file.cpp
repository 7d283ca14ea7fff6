#include "checkpoint/mapped_file.h"

#include "core/available_memory.h"
#include "core/checks.h"
#include "core/text.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <utility>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Checkpoint.open";

}  // namespace

MappedFile MappedFile::map(const InputFile& file, bool use_mmap) {
  const size_t size = file.size();
  if (!use_mmap)
    check_memory(size, available_memory_bytes(), kWhere,
                 concat("the bytes of ", printable(file.name()), ", copied without use_mmap,"));
  const int protection = use_mmap ? PROT_READ : PROT_READ | PROT_WRITE;
  const int flags = MAP_PRIVATE | (use_mmap ? 0 : MAP_ANONYMOUS);
  void* base = ::mmap(nullptr, size, protection, flags, use_mmap ? file.descriptor() : -1, 0);
  if (base == MAP_FAILED)
    fail(errno == ENOMEM ? ErrorCode::out_of_memory : ErrorCode::io, kWhere,
         printable(file.name()), ": mapping ", size, " bytes: ", std::strerror(errno));
  MappedFile mapped(static_cast<std::byte*>(base), size, use_mmap);
  if (!use_mmap) {
    file.read_exact(0, {mapped.base_, size});
    ::mprotect(base, size, PROT_READ);
  }
  file.check_unchanged();
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)), size_(other.size_), is_file_(other.is_file_) {}

MappedFile::~MappedFile() {
  if (base_) ::munmap(base_, size_);
}

bool MappedFile::contains(const std::byte* address) const {
  return !std::less<>{}(address, base_) && std::less<>{}(address, base_ + size_);
}

void MappedFile::release_pages(std::span<const std::byte> range) const noexcept {
  if (!is_file_ || range.empty()) return;
  // A page fault also maps the other pages of an aligned 64 KiB that the page cache has: neighbours
  // that were released before come back with the first and last reads of a range. They are dropped
  // with it; whoever still needs them reads them again.
  constexpr uintptr_t kFaultAround = 64 << 10;
  const auto begin = reinterpret_cast<uintptr_t>(base_);
  const auto address = reinterpret_cast<uintptr_t>(range.data());
  const uintptr_t first = std::max(address / kFaultAround * kFaultAround, begin);
  const uintptr_t end = address + range.size() + kFaultAround - 1;
  const uintptr_t last = std::min(end / kFaultAround * kFaultAround, begin + size_);
  ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace mimo_rt
