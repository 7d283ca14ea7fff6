// The cases of edges between tasks: a token that workers hand around, on a CPU and on a GPU.
#pragma once

#include "kbench/subject.h"

namespace mimo_rt::kbench {

inline constexpr uint32_t kDefaultHops = 4096, kMaxHops = 1u << 16;

/// With what was left open: all `num_available` workers, all of them as signallers of edge_gather.
/// @throws Error{invalid_argument, capacity} that names the field
inline KernelCase complete_edge_case(KernelCase c, uint32_t num_available) {
  MIMO_RT_CHECK(c.format == "u32", invalid_argument, kWhere, "format: expected u32 for ", c.kernel,
                ", got '", c.format, "'");
  if (c.num_workers == 0) c.num_workers = num_available;
  check_at_most("num_workers", c.num_workers, num_available);
  MIMO_RT_CHECK(c.num_workers >= 2 || c.kernel == "edge_same_worker", invalid_argument, kWhere,
                "num_workers: expected at least 2, which wait for each other, got ", c.num_workers);
  if (c.num_hops == 0) c.num_hops = kDefaultHops;
  check_at_most("num_hops", c.num_hops, kMaxHops);
  const bool is_gather = c.kernel == "edge_gather";
  if (c.num_signallers == 0) c.num_signallers = is_gather ? c.num_workers : 1;
  check_at_most("num_signallers", c.num_signallers, is_gather ? c.num_workers : 1);
  return c;
}

}  // namespace mimo_rt::kbench
