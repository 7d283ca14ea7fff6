// What this build contains and what this machine can run.
#pragma once

#include <mimo_rt/api.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mimo_rt {

/// A place where a plan can run. Names: "ref", "cpu-generic", "cpu-avx2", "cpu-avx512", "cuda".
struct Backend {
  std::string name;
  bool available = false;  ///< compiled in and supported by this machine
  std::string reason;      ///< why not, when not available; else a short description
};

/// What the vector units can do.
struct VectorPeak {
  double gflops;       ///< 1e9 operations per second, two per multiply-add
  std::string source;  ///< the instruction: "vdpbf16ps", "FP32 FMA", …
};

/// All backends that this version knows: ref, the CPU backends slowest first, then cuda.
MIMO_RT_API std::vector<Backend> list_backends();

/// Turns "auto", "cpu", "ref", "cuda" or a backend name into an available backend's name.
/// "auto" and "cpu" pick the fastest CPU backend; the environment variable MIMO_RT_BACKEND overrides "auto" only.
/// @throws Error{unavailable} with the reason, Error{invalid_argument} for an unknown name.
MIMO_RT_API std::string resolve_backend(std::string_view name);

/// Processors that this process may run on (affinity mask and cgroup quota), >= 1.
MIMO_RT_API uint32_t num_usable_cores();

/// Memory of the first visible GPU that nobody has taken. @throws Error{unavailable} when this build or machine has none
MIMO_RT_API uint64_t free_gpu_bytes();

/// Takes `num_bytes` of memory in the way weights do, writes to them and gives them back. Returns how many of them the
/// kernel put into huge pages: 0 where it has none or denies them.
/// @throws Error{out_of_memory}
MIMO_RT_API uint64_t probe_huge_pages(uint64_t num_bytes);

}  // namespace mimo_rt
