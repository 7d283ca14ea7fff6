#include "weights/arena.h"

#include "core/checks.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <utility>

namespace mimo_rt {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kHugePage = uint64_t{2} << 20;
constexpr uint64_t kUnknown = std::numeric_limits<uint64_t>::max();

/// A file that holds one number; "max" and unreadable files give `kUnknown`.
uint64_t read_number(const fs::path& path) {
  std::ifstream in(path);
  uint64_t value = 0;
  return in >> value ? value : kUnknown;
}

/// The number after `key` in a file of "key value" lines, or `missing`.
uint64_t read_field(const fs::path& path, std::string_view key, uint64_t missing) {
  std::ifstream in(path);
  for (std::string word; in >> word;) {
    uint64_t value = 0;
    if (word == key && in >> value) return value;
    in.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return missing;
}

/// Of a mapped file.
bool is_in_page_cache(const std::byte* address) {
  const auto page = reinterpret_cast<uintptr_t>(address) & ~uintptr_t{4095};
  unsigned char is_resident = 0;
  return ::mincore(reinterpret_cast<void*>(page), 1, &is_resident) == 0 && (is_resident & 1);
}

struct CgroupFiles {
  const char* mount;
  const char* limit;
  const char* usage;
  const char* inactive_cache;
  const char* active_cache;
};

constexpr CgroupFiles kCgroupV1 = {"sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                   "memory.usage_in_bytes", "total_inactive_file",
                                   "total_active_file"};
constexpr CgroupFiles kCgroupV2 = {"sys/fs/cgroup", "memory.max", "memory.current",
                                   "inactive_file", "active_file"};

/// What one memory cgroup leaves.
uint64_t cgroup_free(const fs::path& directory, const CgroupFiles& files) {
  const uint64_t limit = read_number(directory / files.limit);
  const uint64_t usage = read_number(directory / files.usage);
  if (limit == kUnknown || usage == kUnknown) return kUnknown;
  const fs::path stat = directory / "memory.stat";
  const uint64_t cache =
      read_field(stat, files.inactive_cache, 0) + read_field(stat, files.active_cache, 0);
  const uint64_t used = usage - std::min(usage, cache);
  return limit - std::min(limit, used);
}

/// The least that `group` and its parents leave; a path of another namespace is skipped upwards.
uint64_t least_free(const fs::path& root, const CgroupFiles& files, fs::path group) {
  const fs::path mount = root / files.mount;
  uint64_t least = cgroup_free(mount, files);
  for (group = group.relative_path(); !group.empty(); group = group.parent_path())
    least = std::min(least, cgroup_free(mount / group, files));
  return least;
}

}  // namespace

void Arena::reserve(uint64_t num_bytes, const char* where) {
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

uint64_t available_memory_bytes(const fs::path& root) {
  constexpr uint64_t kMaxKib = kUnknown / 1024;
  const uint64_t kib = read_field(root / "proc/meminfo", "MemAvailable:", kUnknown);
  uint64_t available = kib > kMaxKib ? kUnknown : kib * 1024;
  // Lines are "hierarchy-id:controllers:path"; version 2 has id 0 and no controllers.
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = ',' + line.substr(first + 1, second - first - 1) + ',';
    const std::string group = line.substr(second + 1);
    if (controllers == ",,")
      available = std::min(available, least_free(root, kCgroupV2, group));
    else if (controllers.find(",memory,") != std::string::npos)
      available = std::min(available, least_free(root, kCgroupV1, group));
  }
  return available;
}

void check_memory(uint64_t needed_bytes, uint64_t available_bytes, const char* where) {
  MIMO_RT_CHECK(needed_bytes <= available_bytes, out_of_memory, where,
                "the packed weights need ", needed_bytes, " bytes (",
                needed_bytes / 1'000'000'000, " GB), this machine has ", available_bytes,
                " bytes available. Use a machine with more memory or a smaller model.");
}

void prefetch_pages(std::span<const std::byte> range) noexcept {
  if (range.empty()) return;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(range.data()) / page * page;
  const auto last = reinterpret_cast<uintptr_t>(range.data() + range.size());
  ::madvise(reinterpret_cast<void*>(first), last - first, MADV_WILLNEED);
}

}  // namespace mimo_rt
