#include "cuda/read_speed.h"

#include <algorithm>
#include <vector>

namespace mimo_rt::cuda {

double measure_read_gbs(BenchDevice& device, double seconds) {
  constexpr uint32_t kCalls = 8;
  std::vector<double> read_s;
  for (double sum_s = 0; sum_s < seconds;) {
    const KernelTimes times = device.time(kCalls, [](uint32_t) {});
    for (const double time_s : times.read_s) sum_s += time_s;
    read_s.insert(read_s.end(), times.read_s.begin(), times.read_s.end());
  }
  const auto middle = read_s.begin() + static_cast<std::ptrdiff_t>(read_s.size() / 2);
  std::nth_element(read_s.begin(), middle, read_s.end());
  return 1e-9 * static_cast<double>(device.read_bytes()) / *middle;
}

}  // namespace mimo_rt::cuda
