#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "core/read_memory.h"
#include "kbench/cpu_subjects.h"

namespace mimo_rt::kbench {

uint64_t rotation_bytes(const KernelBenchOptions& options) {
  constexpr uint64_t kLeast = uint64_t{256} << 20;
  if (options.rotation_bytes != 0) return options.rotation_bytes;
  const long cache_bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);  // 0 or -1: not known
  return std::max(kLeast, 4 * static_cast<uint64_t>(std::max(cache_bytes, 0L)));
}

double ColdWalk::now() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

uint64_t ColdWalk::read_bytes() const {
  return std::min(kReadBytes, num_places_ * stride_ / 64 * 64);
}

void ColdWalk::read_elsewhere(uint64_t place) {
  const uint64_t total = num_places_ * stride_, bytes = read_bytes();
  const uint64_t begin = (place * stride_ + total / 2) % total;
  sink_ = sink_ + read_memory(data_ + std::min(begin, total - bytes) / 64 * 64, bytes);
}

}  // namespace mimo_rt::kbench
