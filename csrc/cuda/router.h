// Host API of the router kernels as launches of their own. The persistent kernel calls the same
// device functions (device/tasks/router.cuh, select_experts.cuh) instead.
#pragma once

#include "cuda/launch_options.h"
#include "cuda/router_params.h"

namespace mimo_rt::cuda {

/// What can be said before a launch: sizes, strides, alignment, missing pointers.
/// @throws Error{invalid_argument, unsupported_shape, capacity} that names the field
void check_router_logits(const RouterLogitsParams& params);
void check_select_experts(const SelectExpertsParams& params);

/// Checks, then launches on the current device and returns at once. All pointers are to its memory.
/// @throws as the checks; Error{unavailable} for a device that the kernels were not built for;
///         Error{device_lost} when CUDA refuses, with call, kernel and shapes
void launch_router_logits(const RouterLogitsParams& params, const LaunchOptions& options = {});
/// The same; one block, whatever the options say.
void launch_select_experts(const SelectExpertsParams& params, const LaunchOptions& options = {});

}  // namespace mimo_rt::cuda
