// The kernel tables that this machine can run, and AVX-512 through SIMDe where the build found it.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "cpu/dispatch.h"

#if defined(MIMO_RT_HAVE_SIMDE)
namespace mimo_rt::cpu {
const Kernels* kernels_avx512_emulated();
const Kernels* kernels_avx512_bf16_emulated();
const Kernels* kernels_avx512_int8_emulated();
const Kernels* kernels_avx512_bf16_int8_emulated();
}
#endif

namespace kernel_tables {

struct Table {
  std::string name;
  const mimo_rt::cpu::Kernels* kernels;
  bool flushes = false;  ///< vdpbf16ps takes subnormals as zero, its results too
  const mimo_rt::cpu::Kernels* exact = nullptr;  ///< of INT8 ones: the kernels of all other formats
};

#if defined(MIMO_RT_AVX512)
/// Both sets of AVX-512 kernels run where the processor has BF16, whichever of them cpu-avx512 stands for.
inline bool runs_both_avx512() {
  const mimo_rt::cpu::CpuFeatures f = mimo_rt::cpu::machine_features();
  return f.avx512f && f.avx512bf16 && f.avx512vbmi && f.avx512vnni;
}
#endif

inline std::vector<Table> runnable() {
  std::vector<Table> tables;
  for (const mimo_rt::cpu::CpuBackend& backend : mimo_rt::cpu::cpu_backends())
    if (backend.kernels && backend.supported) tables.push_back({backend.name, backend.kernels});
#if defined(MIMO_RT_AVX512)
  if (runs_both_avx512()) {
    tables.back() = {"cpu-avx512 with BF16", mimo_rt::cpu::kernels_avx512_bf16(), true};
    tables.push_back({"cpu-avx512 without BF16", mimo_rt::cpu::kernels_avx512()});
  }
#endif
#if defined(MIMO_RT_HAVE_SIMDE)
  tables.push_back({"cpu-avx512 (emulated)", mimo_rt::cpu::kernels_avx512_emulated()});
  tables.push_back(
      {"cpu-avx512 with BF16 (emulated)", mimo_rt::cpu::kernels_avx512_bf16_emulated(), true});
#endif
  return tables;
}

/// The same with INT8 activations.
inline std::vector<Table> runnable_int8() {
  using namespace mimo_rt::cpu;
  std::vector<Table> tables;
  const auto add = [&](const std::string& name, const Kernels* kernels, const Kernels* exact) {
    tables.push_back({name, kernels, false, exact});
  };
  for (const CpuBackend& backend : cpu_backends())
    if (backend.kernels && backend.supported) add(backend.name, backend.int8_kernels, backend.kernels);
#if defined(MIMO_RT_AVX512)
  if (runs_both_avx512()) {
    tables.pop_back();
    add("cpu-avx512 with BF16", kernels_avx512_bf16_int8(), kernels_avx512_bf16());
    add("cpu-avx512 without VNNI", kernels_avx512_int8(), kernels_avx512());
    CpuFeatures slow_bf16 = machine_features();
    slow_bf16.fast_bf16 = false;
    const CpuBackend backend = backends_for(slow_bf16).back();
    add("cpu-avx512 with VNNI alone", backend.int8_kernels, backend.kernels);
  }
#endif
#if defined(MIMO_RT_HAVE_SIMDE)
  add("cpu-avx512 (emulated)", kernels_avx512_int8_emulated(), kernels_avx512_emulated());
  add("cpu-avx512 with VNNI (emulated)", kernels_avx512_bf16_int8_emulated(), kernels_avx512_bf16_emulated());
#endif
  return tables;
}

/// 64-byte aligned memory; uninitialised bytes are 0xff, a NaN pattern, so that reading them shows.
class Aligned {
 public:
  explicit Aligned(size_t bytes)
      : data_(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64))) {
    for (size_t i = 0; i < (bytes + 127) / 64 * 64; ++i) data_.get()[i] = 0xff;
  }
  uint8_t* bytes() const { return data_.get(); }
  float* floats() const { return reinterpret_cast<float*>(data_.get()); }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> data_;
};

}  // namespace kernel_tables
