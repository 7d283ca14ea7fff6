// What a worker of a plan waits for, in words.
#pragma once

#include <mimo_rt/plan.h>

#include <cstdint>
#include <string>

namespace mimo_rt {

/// "worker 1 task 7 (o_proj, layer 3) waits for counter 'layer 3 attention': expected >= 4, saw 3".
/// Of a tag edge: "waits for tag edge 'layer 3 select_experts': expected 8, saw 6", which are tags on a GPU.
/// A task behind the worker's last one is the end of the epoch.
std::string wait_text(const Plan& plan, uint32_t worker_idx, uint32_t task_idx, uint32_t counter,
                      uint64_t expected, uint64_t seen);

}  // namespace mimo_rt
