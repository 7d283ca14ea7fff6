// What this machine does not grant an engine: told to whoever asks. Answers stay the same, speed does not.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mimo_rt {

/// Empty: there is a core for every worker.
std::string note_on_workers(uint32_t num_workers, uint32_t num_usable_cores);

/// Empty: no worker misses the core that it should be bound to. `missing_cores`: one of each that does.
std::string note_on_cores(const std::vector<int>& missing_cores, uint32_t num_workers, uint32_t num_usable_cores);

/// Bytes of memory that belong to this process alone, those of a file (or of shared memory) that are mapped, and how
/// many of each lie in huge pages.
struct PageUse {
  uint64_t private_bytes = 0, huge_bytes = 0;
  uint64_t mapped_bytes = 0, huge_mapped_bytes = 0;
};

/// Of the mappings that touch [begin, end), from <root>proc/self/smaps; all 0 when that cannot be read. `root` ends with
/// '/'; "/" outside of tests.
PageUse page_use(const void* begin, const void* end, const std::string& root = "/");

/// Empty: most of the weights lie in huge pages, or the weights are too small for it to matter. Of memory of their own,
/// it says what <root>sys/kernel/mm/transparent_hugepage/enabled asks for.
std::string note_on_pages(const PageUse& use, const std::string& root = "/");

}  // namespace mimo_rt
