#include "weights/arena.h"

#include "core/checks.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace mimo_rt {
namespace {

constexpr uint64_t kHugePage = uint64_t{2} << 20;

/// Of a mapped file.
bool is_in_page_cache(const std::byte* address) {
  const auto page = reinterpret_cast<uintptr_t>(address) & ~uintptr_t{4095};
  unsigned char is_resident = 0;
  return ::mincore(reinterpret_cast<void*>(page), 1, &is_resident) == 0 && (is_resident & 1);
}

}  // namespace

void Arena::reserve(uint64_t num_bytes, const char* where) {
  MIMO_RT_CHECK(num_bytes <= UINT64_MAX - 2 * kHugePage, out_of_memory, where, "reserving ", num_bytes,
                " bytes for the weights: expected less than 2^64 - 2^22");
  size_bytes_ = num_bytes;
  mapping_bytes_ = (num_bytes + kHugePage - 1) / kHugePage * kHugePage + kHugePage;
  void* mapping = ::mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  MIMO_RT_CHECK(mapping != MAP_FAILED, out_of_memory, where, "reserving ", num_bytes,
                " bytes for the weights: ", std::strerror(errno));
  mapping_ = mapping;
  const auto begin = reinterpret_cast<uintptr_t>(mapping);
  data_ = static_cast<uint8_t*>(mapping) + (kHugePage - begin % kHugePage) % kHugePage;
}

Arena::Arena(uint64_t num_bytes, const char* where) {
  reserve(num_bytes, where);
  ::madvise(mapping_, mapping_bytes_, MADV_HUGEPAGE);  // a wish: small pages work too
}

Arena Arena::map_file(int descriptor, uint64_t offset, uint64_t num_bytes, const char* where) {
  Arena arena;
  arena.reserve(num_bytes, where);  // what lies around the file stays readable
  if (!num_bytes) return arena;
  void* mapped = ::mmap(arena.data_, num_bytes, PROT_READ, MAP_SHARED | MAP_FIXED, descriptor,
                        static_cast<off_t>(offset));
  if (mapped == MAP_FAILED)
    fail(errno == ENOMEM ? ErrorCode::out_of_memory : ErrorCode::io, where, "mapping ", num_bytes,
         " bytes: ", std::strerror(errno));
  arena.wants_huge_ = ::madvise(arena.data_, num_bytes, MADV_HUGEPAGE) == 0;
  return arena;
}

void Arena::read_ahead(uint64_t offset, uint64_t num_bytes) const noexcept {
  const std::span bytes{reinterpret_cast<const std::byte*>(data_ + offset), std::min(num_bytes, size_bytes_ - offset)};
  if (wants_huge_) {
    (void)*static_cast<const volatile std::byte*>(bytes.data());
    if (is_in_page_cache(&bytes.back())) return;
  }
  prefetch_pages(bytes);
}

Arena::Arena(Arena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_bytes_(std::exchange(other.mapping_bytes_, 0)),
      wants_huge_(other.wants_huge_) {}

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  std::swap(wants_huge_, other.wants_huge_);
  return *this;
}

Arena::~Arena() {
  if (mapping_) ::munmap(mapping_, mapping_bytes_);
}

void prefetch_pages(std::span<const std::byte> range) noexcept {
  if (range.empty()) return;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(range.data()) / page * page;
  const auto last = reinterpret_cast<uintptr_t>(range.data() + range.size());
  ::madvise(reinterpret_cast<void*>(first), last - first, MADV_WILLNEED);
}

}  // namespace mimo_rt
