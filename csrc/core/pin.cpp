#include "core/pin.h"

#include <mimo_rt/device.h>

#include <sched.h>

namespace mimo_rt {

std::vector<int> cores_to_pin(uint32_t num_threads) {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cores;
  for (size_t core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &set)) cores.push_back(static_cast<int>(core));
  const bool has_quota = num_usable_cores() < cores.size();
  if (has_quota || cores.size() < num_threads) cores.clear();
  return cores;
}

bool pin_this_thread(int core) noexcept {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(core), &set);
  return sched_setaffinity(0, sizeof(set), &set) == 0;
}

}  // namespace mimo_rt
