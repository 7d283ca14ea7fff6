#include "checkpoint/mapped_file.h"

#include "core/checks.h"
#include "core/text.h"

#include <sys/mman.h>
#include <unistd.h>

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
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(range.data()) / page * page;
  const auto last = reinterpret_cast<uintptr_t>(range.data() + range.size());
  // Pages shared with a neighbour are dropped too: they are read again from the file.
  ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace mimo_rt
