#include "engine/machine_notes.h"

#include "core/available_memory.h"
#include "core/checks.h"
#include "weights/arena.h"

#include <mimo_rt/device.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string_view>

namespace mimo_rt {
namespace {

constexpr uint64_t kWorthATlb = uint64_t{64} << 20;  // less than this hardly misses it

/// The chosen word of "always [madvise] never"; "unknown" without the file.
std::string chosen_setting(const std::string& root) {
  std::ifstream file(root + "sys/kernel/mm/transparent_hugepage/enabled");
  for (std::string word; file >> word;)
    if (word.size() > 2 && word.front() == '[' && word.back() == ']') return word.substr(1, word.size() - 2);
  return "unknown";
}

/// "55d0-55f0 rw-p 00000000 …": the first line of a mapping, whose others are "Name:  number kB".
bool read_bounds(const std::string& line, uint64_t& begin, uint64_t& end) {
  char dash = 0;
  std::istringstream text(line);
  return static_cast<bool>(text >> std::hex >> begin >> dash >> end) && dash == '-';
}

/// Whether that is so many small pages that reading them takes longer.
bool are_small(uint64_t num_bytes, uint64_t num_huge_bytes) {
  return num_bytes >= kWorthATlb && num_huge_bytes < num_bytes / 2;
}

}  // namespace

std::string note_on_workers(uint32_t num_workers, uint32_t num_usable_cores) {
  if (num_workers <= num_usable_cores) return {};
  return concat("num_threads: ", num_workers, " workers share ", num_usable_cores,
                num_usable_cores == 1 ? " core" : " cores",
                " (affinity mask and CPU limit of the control group), so none is bound to a core and a step may take "
                "several times as long. Use at most ",
                num_usable_cores, ".");
}

std::string note_on_cores(const std::vector<int>& missing_cores, uint32_t num_workers, uint32_t num_usable_cores) {
  if (missing_cores.empty()) return {};
  std::string list;
  for (const int core : missing_cores) list += concat(list.empty() ? "" : ", ", core);
  return concat("pin_threads: ", missing_cores.size(), " of ", num_workers,
                " workers not bound to a core: the system refuses ", missing_cores.size() == 1 ? "core " : "cores ",
                list, ", or has taken it away since (a control group's cpuset, taskset, a sandbox), so a step may take "
                "several times as long. ", num_usable_cores, num_usable_cores == 1 ? " core is" : " cores are",
                " usable now: open the engine again with at most as many threads, or give the cores back.");
}

PageUse page_use(const void* begin, const void* end, const std::string& root) {
  const auto wanted_begin = reinterpret_cast<uintptr_t>(begin), wanted_end = reinterpret_cast<uintptr_t>(end);
  PageUse use;
  std::ifstream file(root + "proc/self/smaps");
  bool touches = false;
  uint64_t resident_bytes = 0;  // of the mapping at hand
  for (std::string line; std::getline(file, line);) {
    uint64_t from = 0, to = 0;
    if (read_bounds(line, from, to)) {
      touches = from < wanted_end && wanted_begin < to;
      continue;
    }
    std::istringstream text(line);
    std::string name;
    uint64_t kib = 0;
    if (!touches || !(text >> name >> kib)) continue;
    const uint64_t num_bytes = kib * 1024;
    if (name == "Rss:") resident_bytes = num_bytes;
    if (name == "Anonymous:") {
      use.private_bytes += num_bytes;
      use.mapped_bytes += resident_bytes - std::min(resident_bytes, num_bytes);
    }
    if (name == "AnonHugePages:") use.huge_bytes += num_bytes;
    if (name == "FilePmdMapped:" || name == "ShmemPmdMapped:") use.huge_mapped_bytes += num_bytes;
  }
  return use;
}

uint64_t probe_huge_pages(uint64_t num_bytes) {
  constexpr const char* kWhere = "probe_huge_pages";
  const uint64_t free_bytes = available_memory_bytes();
  MIMO_RT_CHECK(num_bytes <= free_bytes, out_of_memory, kWhere, "num_bytes: expected at most the ", free_bytes,
                " that are free, got ", num_bytes);
  const Arena arena(num_bytes, kWhere);
  constexpr uint64_t kSmallestPage = 4096;
  for (uint64_t at = 0; at < num_bytes; at += kSmallestPage) arena.data()[at] = 1;
  return std::min(page_use(arena.data(), arena.data() + num_bytes).huge_bytes, num_bytes);
}

std::string note_on_pages(const PageUse& use, const std::string& root) {
  if (are_small(use.private_bytes, use.huge_bytes))
    return concat("huge pages: the kernel gave ", use.huge_bytes >> 20, " of ", use.private_bytes >> 20,
                  " MiB of weights (/sys/kernel/mm/transparent_hugepage/enabled: ", chosen_setting(root),
                  "), so reading them may take a quarter longer. 'madvise' or 'always' there, and free memory in one "
                  "piece, allow them.");
  if (are_small(use.mapped_bytes, use.huge_mapped_bytes))
    return concat("huge pages: ", use.huge_mapped_bytes >> 20, " of ", use.mapped_bytes >> 20,
                  " MiB of the mapped packed cache lie in them, so reading it may take a quarter longer. It takes a "
                  "file system with large folios (ext4 from Linux 6.16 on, XFS, Btrfs) and a file that is not in the "
                  "page cache in small pages already; use_mmap = false reads it into memory of this process.");
  return {};
}

}  // namespace mimo_rt
