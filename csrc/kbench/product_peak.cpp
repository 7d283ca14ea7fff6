#include <algorithm>
#include <chrono>

#include "kbench/cpu_subjects.h"

namespace mimo_rt::kbench {

VectorPeak product_peak(const cpu::Kernels& kernels, PackedFormat format) {
  using Clock = std::chrono::steady_clock;
  constexpr uint64_t kRounds = 1 << 16;  // a quarter of a millisecond
  constexpr int kRuns = 8;
  const int code = static_cast<int>(format);
  double gflops = 0;
  for (int run = 0; run < kRuns; ++run) {
    const Clock::time_point begin = Clock::now();
    const auto num_operations = static_cast<double>(kernels.run_products(code, kRounds));
    const std::chrono::duration<double, std::nano> spent = Clock::now() - begin;
    gflops = std::max(gflops, num_operations / spent.count());
  }
  return {gflops, kernels.product_source(code)};
}

}  // namespace mimo_rt::kbench
