// Turns task times into a Chrome trace (chrome://tracing, Perfetto).
#pragma once

#include <mimo_rt/plan.h>

#include <cstdint>
#include <string>
#include <vector>

namespace mimo_rt {

/// When and by whom a task ran. Times in ns from the start of the step.
struct TaskTrace {
  uint32_t worker_idx, task_idx;  ///< task_idx: index in the worker's list
  uint64_t wait_begin_ns, begin_ns, end_ns;
  // Of workers with threads of their own for these, else 0:
  uint64_t fetch_ns = 0;    ///< the first part of the wait: the task itself was not there
  uint64_t weights_ns = 0;  ///< of the task: waits for what streams in, weights, keys and values; mean of its threads
};

/// Times that the planner's cost estimates imply: every task starts when its worker is free and its
/// waits are met. In an order that respects all waits. `plan` must be verified.
std::vector<TaskTrace> predict_trace(const Plan& plan);

/// One process "predicted" (from predict_trace) and one "measured" (when not empty); a row per worker;
/// waiting is a slice of its own ("fetch": for the task itself). Records that name no task of the plan are refused.
/// @throws Error{invalid_argument}
std::string chrome_trace_json(const Plan& plan, const std::vector<TaskTrace>& measured);

}  // namespace mimo_rt
