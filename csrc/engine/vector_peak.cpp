#include "engine/vector_peak.h"

#include "engine/timed_passes.h"

#include <algorithm>
#include <chrono>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Engine.measure_vector_peak";
constexpr uint64_t kRounds = 1 << 20;  // 3 to 7 ms: what waking up adds is below 1 %
constexpr int kMinPasses = 3;

}  // namespace

VectorPeak measure_vector_peak(const cpu::Kernels& kernels, const PeakOptions& options) {
  using Clock = std::chrono::steady_clock;
  TimedPasses passes(kWhere, options.num_threads, options.pin_threads,
                     [&](uint32_t) { return kernels.run_products(kRounds); });
  VectorPeak peak{0.0, kernels.product_source};
  const auto begin = Clock::now();
  for (int pass = 0; pass < kMinPasses ||
                     std::chrono::duration<double>(Clock::now() - begin).count() < options.seconds;
       ++pass) {
    const TimedPasses::Result result = passes.run();
    peak.gflops = std::max(peak.gflops, static_cast<double>(result.sum) / result.seconds * 1e-9);
  }
  return peak;
}

}  // namespace mimo_rt
