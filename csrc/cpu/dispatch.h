// Which kernel table a backend name stands for. The choice is made once per engine, at run time.
#pragma once

#include <string_view>
#include <vector>

#include "cpu/kernels.h"

namespace mimo_rt::cpu {

/// A CPU backend that this version knows, slowest first.
struct CpuBackend {
  const char* name;        ///< "cpu-generic", "cpu-avx2", "cpu-avx512"
  const char* needs;       ///< instruction sets, for messages
  const Kernels* kernels;  ///< nullptr: not built for this processor family
  bool supported;          ///< by this processor and operating system
};

const std::vector<CpuBackend>& cpu_backends();

/// @throws Error{unavailable} when this machine cannot run it, Error{invalid_argument} for an
/// unknown name.
const Kernels& select_kernels(std::string_view backend_name);

}  // namespace mimo_rt::cpu
