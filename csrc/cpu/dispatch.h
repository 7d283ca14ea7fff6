// Which kernel table a backend name stands for. The choice is made once per engine, at run time.
#pragma once

#include <string_view>
#include <vector>

#include "core/activations.h"
#include "cpu/kernels.h"

namespace mimo_rt::cpu {

/// Instruction sets that the processor has and whose registers the operating system saves, and whether they pay.
struct CpuFeatures {
  bool avx2 = false, fma = false;
  bool avx512f = false, avx512bw = false, avx512vl = false, avx512dq = false;
  bool avx512bf16 = false, avx512vbmi = false, avx512vnni = false;
  /// vdpbf16ps gets more done than FP32 FMA: twice as much on Zen 4, half as much on Emerald Rapids.
  bool fast_bf16 = false;
};

/// Measures `fast_bf16` where the question arises: well below a millisecond.
CpuFeatures machine_features();

/// A CPU backend that this version knows, slowest first.
struct CpuBackend {
  const char* name;        ///< "cpu-generic", "cpu-avx2", "cpu-avx512"
  const char* needs;       ///< instruction sets of `kernels`, for messages
  const Kernels* kernels;  ///< nullptr: not built for this processor family
  const Kernels* int8_kernels;
  bool supported;          ///< with these features
  const char* kernel_set = "";  ///< which of its tables it stands for, where there are several
};

/// What a machine with these features can run. cpu-avx512 stands for the kernels with BF16, VBMI and
/// VNNI where all exist, else for those without: the sums are the same, see avx512/gemm.h. Where BF16
/// is slow, only INT8 products are those of the former.
std::vector<CpuBackend> backends_for(const CpuFeatures& features);

/// Those of this machine.
const std::vector<CpuBackend>& cpu_backends();

/// @throws Error{unavailable} when this machine cannot run it, Error{invalid_argument} for an
/// unknown name.
const Kernels& select_kernels(std::string_view backend_name,
                              Activations activations = Activations::bf16);
/// The same for any list of backends.
const Kernels& select_kernels(const std::vector<CpuBackend>& backends,
                              std::string_view backend_name,
                              Activations activations = Activations::bf16);

}  // namespace mimo_rt::cpu
