// The list of CPU backends. This file is compiled for the baseline processor: it may ask what the
// machine can do.
#include "cpu/dispatch.h"

#include "core/checks.h"
#include "cpu/tile_layout.h"
#include "weights/packed.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace mimo_rt::cpu {
namespace {

// The kernels' private copy of the layout must be the layout that the packer writes.
constexpr bool layouts_agree() {
  for (int format = 0; format < layout::kNumFormats; ++format) {
    const PackedFormat packed = static_cast<PackedFormat>(format);
    for (uint32_t blocks = 1; blocks <= layout::kBlocksPerTile; ++blocks)
      if (layout::tile_bytes(format, blocks) != tile_bytes(packed, blocks)) return false;
    for (uint32_t k = kBlockK; k <= 4 * kTileK; k += kBlockK)
      if (layout::row_group_bytes(format, k) != row_group_bytes(packed, k)) return false;
  }
  return true;
}
static_assert(layouts_agree());
static_assert(uint32_t{layout::kRows} == kTileRows && uint32_t{layout::kTileK} == kTileK &&
              uint32_t{layout::kBlockK} == kBlockK &&
              uint32_t{layout::kAlignment} == kTileAlignment);
static_assert(layout::kMxfp4 == int(PackedFormat::mxfp4) &&
              layout::kFp8 == int(PackedFormat::fp8_e4m3) &&
              layout::kBf16 == int(PackedFormat::bf16) && layout::kF32 == int(PackedFormat::f32));

#if defined(MIMO_RT_AVX512)
bool has_avx512(const CpuFeatures& f) {
  return f.avx2 && f.fma && f.avx512f && f.avx512bw && f.avx512vl && f.avx512dq;
}
bool has_bf16_kernels(const CpuFeatures& f) {
  return has_avx512(f) && f.avx512bf16 && f.avx512vbmi && f.avx512vnni;
}

/// Seconds that a table's multiply-adds take per operation, in a few microseconds.
double product_seconds(const Kernels& kernels) {
  constexpr uint64_t kRounds = 1000;
  const auto begin = std::chrono::steady_clock::now();
  const uint64_t num_operations = kernels.run_products(layout::kBf16, kRounds);
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
  return spent.count() / static_cast<double>(num_operations);
}

/// The rates known differ by a factor of two, one way or the other: the best of a few runs tells them apart on a busy
/// machine, too. Where they hardly differ it is FP32 FMA every time.
bool is_bf16_fast() {
  constexpr int kRuns = 10;
  constexpr double kWorthIt = 1.2;
  double with = HUGE_VAL, without = HUGE_VAL;
  for (int run = 0; run < kRuns; ++run) {
    with = std::min(with, product_seconds(*kernels_avx512_bf16()));
    without = std::min(without, product_seconds(*kernels_avx512()));
  }
  return kWorthIt * with < without;
}

const Kernels& int8_or_fma(int format) {
  return format == layout::kMxfp4 ? *kernels_avx512_bf16_int8() : *kernels_avx512();
}

/// INT8 products by VNNI, all else by FP32 FMA.
const Kernels* kernels_avx512_vnni_int8() {
  static const Kernels table = [] {
    Kernels mixed = *kernels_avx512_int8();
    mixed.prepared_bytes = [](int format, uint32_t num_tokens, uint32_t k) {
      return int8_or_fma(format).prepared_bytes(format, num_tokens, k);
    };
    mixed.prepare = [](int format, const PrepareArgs& args) { int8_or_fma(format).prepare(format, args); };
    mixed.gemm = [](int format, const GemmArgs& args) { int8_or_fma(format).gemm(format, args); };
    mixed.run_products = [](int format, uint64_t num_rounds) {
      return int8_or_fma(format).run_products(format, num_rounds);
    };
    mixed.product_source = [](int format) { return int8_or_fma(format).product_source(format); };
    return mixed;
  }();
  return &table;
}
#endif

}  // namespace

CpuFeatures machine_features() {
  CpuFeatures features;
#if defined(MIMO_RT_X86)
  // __builtin_cpu_supports also asks whether the operating system saves the wide registers.
  features.avx2 = __builtin_cpu_supports("avx2");
  features.fma = __builtin_cpu_supports("fma");
  features.avx512f = __builtin_cpu_supports("avx512f");
  features.avx512bw = __builtin_cpu_supports("avx512bw");
  features.avx512vl = __builtin_cpu_supports("avx512vl");
  features.avx512dq = __builtin_cpu_supports("avx512dq");
  features.avx512bf16 = __builtin_cpu_supports("avx512bf16");
  features.avx512vbmi = __builtin_cpu_supports("avx512vbmi");
  features.avx512vnni = __builtin_cpu_supports("avx512vnni");
#if defined(MIMO_RT_AVX512)
  features.fast_bf16 = has_bf16_kernels(features) && is_bf16_fast();
#endif
#endif
  return features;
}

std::vector<CpuBackend> backends_for([[maybe_unused]] const CpuFeatures& features) {
  std::vector<CpuBackend> list = {
      {"cpu-generic", "any processor", kernels_generic(), kernels_generic_int8(), true}};
#if defined(MIMO_RT_X86)
  const CpuFeatures& f = features;
  const bool avx2 = f.avx2 && f.fma;
  list.push_back({"cpu-avx2", "AVX2, FMA", kernels_avx2(), kernels_avx2_int8(), avx2});
#if defined(MIMO_RT_AVX512)
  if (has_bf16_kernels(f) && f.fast_bf16)
    list.push_back({"cpu-avx512", "AVX-512 F, BW, VL, DQ, BF16, VBMI, VNNI", kernels_avx512_bf16(),
                    kernels_avx512_bf16_int8(), true, "bf16"});
  else if (has_bf16_kernels(f))
    list.push_back({"cpu-avx512", "AVX-512 F, BW, VL, DQ, VNNI; not BF16, which is slower here than FP32 FMA",
                    kernels_avx512(), kernels_avx512_vnni_int8(), true, "vnni"});
  else
    list.push_back({"cpu-avx512", "AVX-512 F, BW, VL, DQ", kernels_avx512(), kernels_avx512_int8(),
                    has_avx512(f), "base"});
#else
  list.push_back({"cpu-avx512", "a build without sanitizers", nullptr, nullptr, false});
#endif
#else
  list.push_back({"cpu-avx2", "an x86-64 build", nullptr, nullptr, false});
  list.push_back({"cpu-avx512", "an x86-64 build", nullptr, nullptr, false});
#endif
  return list;
}

const std::vector<CpuBackend>& cpu_backends() {
  static const std::vector<CpuBackend> list = backends_for(machine_features());
  return list;
}

const Kernels& select_kernels(std::string_view backend_name, Activations activations) {
  return select_kernels(cpu_backends(), backend_name, activations);
}

const Kernels& select_kernels(const std::vector<CpuBackend>& backends,
                              std::string_view backend_name, Activations activations) {
  for (const CpuBackend& backend : backends) {
    if (backend_name != backend.name) continue;
    MIMO_RT_CHECK(backend.kernels && backend.supported, unavailable, "select_kernels", "backend '",
                  backend_name, "': expected a processor with ", backend.needs,
                  ", got one without");
    return activations == Activations::int8 ? *backend.int8_kernels : *backend.kernels;
  }
  fail(ErrorCode::invalid_argument, "select_kernels",
       "backend: expected cpu-generic, cpu-avx2 or cpu-avx512, got '", backend_name, "'");
}

}  // namespace mimo_rt::cpu
