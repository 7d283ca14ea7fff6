// Reads sched_getaffinity, <root>proc/self/cgroup and the cpu controller's files below <root>sys/fs/cgroup.
#include "core/usable_cores.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <vector>

namespace mimo_rt {
namespace {

uint32_t affinity_cores() {
  // A mask larger than the kernel's is refused with EINVAL only when too small: grow until it fits.
  for (int num_cpus = 1024; num_cpus <= 1 << 18; num_cpus *= 4) {
    cpu_set_t* mask = CPU_ALLOC(static_cast<size_t>(num_cpus));
    if (!mask) break;
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(num_cpus));
    const bool known = sched_getaffinity(0, bytes, mask) == 0;
    const int count = known ? CPU_COUNT_S(bytes, mask) : 0;
    CPU_FREE(mask);
    if (known) return static_cast<uint32_t>(std::max(count, 1));
  }
  return 1;
}

/// Quota over period in processors; 0 when there is no limit.
double ratio(double quota, double period) { return quota > 0 && period > 0 ? quota / period : 0.0; }

double limit_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");  // "max 100000" or "150000 100000"
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max") return 0.0;
  return ratio(std::strtod(quota.c_str(), nullptr), period);
}

double limit_v1(const std::string& folder) {
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us"), period_file(folder + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  if (!(quota_file >> quota) || !(period_file >> period)) return 0.0;
  return ratio(quota, period);  // -1 means no limit
}

/// `path` and every folder above it, down to the mount point: "/a/b" gives "/a/b", "/a" and "".
std::vector<std::string> with_parents(std::string path) {
  std::vector<std::string> paths;
  while (!path.empty() && path != "/") {
    paths.push_back(path);
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
  paths.push_back("");
  return paths;
}

bool has_cpu_controller(const std::string& controllers) {
  std::istringstream list(controllers);
  for (std::string name; std::getline(list, name, ',');)
    if (name == "cpu") return true;
  return false;
}

/// The smallest limit over all hierarchies; 0 when there is none.
double quota_cores(const std::string& root) {
  double smallest = 0.0;
  const auto lower = [&](double limit) {
    if (limit > 0 && (smallest == 0.0 || limit < smallest)) smallest = limit;
  };
  std::ifstream groups(root + "proc/self/cgroup");
  // Lines "id:controllers:path"; v2 has id 0 and no controllers.
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    for (const std::string& path : with_parents(line.substr(second + 1))) {
      if (controllers.empty()) lower(limit_v2(root + "sys/fs/cgroup" + path));
      if (!has_cpu_controller(controllers)) continue;
      for (const char* mount : {"sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"}) lower(limit_v1(root + mount + path));
    }
  }
  return smallest;
}

}  // namespace

uint32_t usable_cores(const std::string& root) {
  const uint32_t cores = affinity_cores();
  const double quota = quota_cores(root);
  if (quota == 0.0) return cores;
  // Half a processor still runs one thread; 2.5 processors run two without being throttled.
  return std::clamp(static_cast<uint32_t>(std::min(std::floor(quota), 1e6)), 1u, cores);
}

}  // namespace mimo_rt
