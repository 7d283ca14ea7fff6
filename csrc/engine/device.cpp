// Backends and usable processors of this machine.
#include <mimo_rt/device.h>

#include "core/checks.h"
#include "core/usable_cores.h"
#include "cpu/dispatch.h"
#include "engine/cuda_engine.h"

#include <algorithm>
#include <cstdlib>

namespace mimo_rt {
namespace {

Backend cpu_backend(const cpu::CpuBackend& backend) {
  if (!backend.kernels) return {backend.name, false, concat("needs ", backend.needs)};
  if (!backend.supported) return {backend.name, false, concat("this processor lacks one of: ", backend.needs)};
  return {backend.name, true, concat("pinned threads, ", backend.needs)};
}

/// The last available CPU backend of `list` is the fastest one.
std::string fastest_cpu(const std::vector<Backend>& list) {
  std::string name;
  for (const Backend& backend : list)
    if (backend.available && backend.name.starts_with("cpu-")) name = backend.name;
  return name;
}

std::vector<Backend> list_host_backends() {
  std::vector<Backend> list = {{"ref", true, "serial, float64 accumulation: the reference, slow"}};
  for (const cpu::CpuBackend& backend : cpu::cpu_backends()) list.push_back(cpu_backend(backend));
  return list;
}

}  // namespace

std::vector<Backend> list_backends() {
  std::vector<Backend> list = list_host_backends();
  list.push_back(cuda_backend(list_cuda_devices()));
  return list;
}

std::string resolve_backend(std::string_view name) {
  std::string wanted(name);
  if (wanted == "auto") {
    const char* forced = std::getenv("MIMO_RT_BACKEND");
    wanted = forced && *forced && std::string_view(forced) != "auto" ? forced : "cpu";
  }
  // A driver is asked, which takes time and does not survive fork(), only by who wants a GPU.
  const std::vector<Backend> list = wanted == "cuda" ? list_backends() : list_host_backends();
  if (wanted == "cpu") return fastest_cpu(list);
  const auto found = std::find_if(list.begin(), list.end(), [&](const Backend& b) { return b.name == wanted; });
  MIMO_RT_CHECK(found != list.end(), invalid_argument, "resolve_backend",
                "device: expected auto, cpu, ref, cpu-generic, cpu-avx2, cpu-avx512 or cuda, got '", wanted, "'");
  MIMO_RT_CHECK(found->available, unavailable, "resolve_backend", "backend '", wanted,
                "': expected one that this machine can run, got: ", found->reason);
  return wanted;
}

uint32_t num_usable_cores() { return usable_cores("/"); }

}  // namespace mimo_rt
