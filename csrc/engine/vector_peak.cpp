#include "engine/vector_peak.h"

#include "core/checks.h"
#include "weights/packed.h"

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Engine.measure_vector_peak";
constexpr uint64_t kRounds = 1 << 20;  // 3 to 7 ms: what waking up adds is below 1 %

}  // namespace

VectorPeak measure_vector_peak(const cpu::Kernels& kernels, const PassOptions& options) {
  constexpr int kBf16 = static_cast<int>(PackedFormat::bf16), kMxfp4 = static_cast<int>(PackedFormat::mxfp4);
  TimedPasses passes(kWhere, options, [&](uint32_t) { return kernels.run_products(kBf16, kRounds); });
  const TimedPasses::Result best = passes.fastest();
  const std::string source = kernels.product_source(kBf16), of_mxfp4 = kernels.product_source(kMxfp4);
  return {static_cast<double>(best.sum) / best.seconds * 1e-9,
          source == of_mxfp4 ? source : concat(source, "; MXFP4, not measured: ", of_mxfp4)};
}

}  // namespace mimo_rt
