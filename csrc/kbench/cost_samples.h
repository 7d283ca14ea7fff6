// What the cost meters of CPUs and GPUs share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <mimo_rt/costs.h>

namespace mimo_rt::kbench {

inline constexpr uint32_t kCostCalls = 9;

/// The first quartile: what a piece costs when nothing interferes, but no lucky shot.
inline double typical(std::vector<double> values) {
  const size_t quarter = values.size() / 4;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(quarter), values.end());
  return values[quarter];
}

/// `edge_ns(n)`: of an edge that n workers signal and all wait for.
template <typename EdgeNs>
void measure_edges(CostTable& table, uint32_t num_workers, const EdgeNs& edge_ns) {
  if (num_workers == 1) return;
  table.edge_ns = edge_ns(2u);
  // Two workers: one signaller alone would wait for nobody.
  table.edge_worker_ns =
      num_workers == 2 ? table.edge_ns / 2 : std::max((edge_ns(num_workers) - table.edge_ns) / (num_workers - 2), 0.0);
}

}  // namespace mimo_rt::kbench
