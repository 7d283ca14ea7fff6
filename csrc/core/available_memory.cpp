#include "core/available_memory.h"

#include "core/checks.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace mimo_rt {
namespace {

namespace fs = std::filesystem;

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

void check_memory(uint64_t needed_bytes, uint64_t available_bytes, const char* where,
                  std::string_view what) {
  MIMO_RT_CHECK(needed_bytes <= available_bytes, out_of_memory, where, what, " need ", needed_bytes, " bytes (",
                needed_bytes / 1'000'000'000, " GB), this machine has ", available_bytes,
                " bytes available. Use a machine with more memory or a smaller model.");
}

}  // namespace mimo_rt
