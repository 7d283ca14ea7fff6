#include "engine/measured_costs.h"

#include "core/checks.h"
#include "core/cuda_devices.h"
#include "cpu/dispatch.h"

#include <mimo_rt/device.h>

namespace mimo_rt {

CostKey cost_key(std::string_view device, uint32_t num_workers, const std::string& activations) {
  CostKey key{.backend = resolve_backend(device), .num_workers = num_workers, .activations = activations};
  if (key.backend == "cuda") {
    const CudaDevice first = list_cuda_devices().devices.front();  // the backend is available, so there is one
    key.processor = first.name;
    if (num_workers == 0) key.num_workers = first.num_sms;
  }
  if (key.num_workers == 0) key.num_workers = num_usable_cores();
  for (const cpu::CpuBackend& backend : cpu::cpu_backends())
    if (key.backend == backend.name) key.kernel_set = backend.kernel_set;
  return key;
}

CostTable costs_for_plan(const CostKey& key, std::string& note) {
  try {
    return load_cost_table(key).value_or(CostTable{});
  } catch (const Error& error) {
    note = concat("costs not used: ", error.what());
    return {};
  }
}

}  // namespace mimo_rt
