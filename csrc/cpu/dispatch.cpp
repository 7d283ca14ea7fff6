// The list of CPU backends. This file is compiled for the baseline processor: it may ask what the
// machine can do.
#include "cpu/dispatch.h"

#include "core/checks.h"
#include "cpu/tile_layout.h"
#include "weights/packed.h"

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
  const bool avx512 = avx2 && f.avx512f && f.avx512bw && f.avx512vl && f.avx512dq;
  if (avx512 && f.avx512bf16 && f.avx512vbmi && f.avx512vnni)
    list.push_back({"cpu-avx512", "AVX-512 F, BW, VL, DQ, BF16, VBMI, VNNI", kernels_avx512_bf16(),
                    kernels_avx512_bf16_int8(), true});
  else
    list.push_back({"cpu-avx512", "AVX-512 F, BW, VL, DQ", kernels_avx512(), kernels_avx512_int8(),
                    avx512});
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
