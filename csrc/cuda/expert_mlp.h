// Host API of the expert kernels as launches of their own. The persistent kernel calls the same
// device functions (device/tasks/expert_mlp.cuh) instead.
#pragma once

#include "cuda/expert_mlp_params.h"
#include "cuda/launch_options.h"

namespace mimo_rt::cuda {

/// What can be said before a launch: sizes, strides, alignment, missing pointers.
/// @throws Error{invalid_argument, unsupported_shape, capacity} that names the field
void check_expert_gate_up(const ExpertGateUpParams& params);
void check_expert_down(const ExpertDownParams& params);

/// Checks, then launches on the current device and returns at once. All pointers are to its memory.
/// @throws as the checks; Error{unavailable} for a device that the kernels were not built for;
///         Error{device_lost} when CUDA refuses, with call, kernel and shapes
void launch_expert_gate_up(const ExpertGateUpParams& params, const LaunchOptions& options = {});
void launch_expert_down(const ExpertDownParams& params, const LaunchOptions& options = {});

}  // namespace mimo_rt::cuda
