// Host API of the expert kernels with FP8 activations, an option that changes results.
#pragma once

#include "cuda/expert_mlp_params.h"
#include "cuda/launch_options.h"

namespace mimo_rt::cuda {

/// What can be said before a launch: sizes, strides, alignment, missing pointers.
/// @throws Error{invalid_argument, unsupported_shape, capacity} that names the field
void check_expert_gate_up_fp8(const ExpertGateUpFp8Params& params);
void check_expert_down_fp8(const ExpertDownFp8Params& params);

/// Checks, then launches two kernels on the current device, one after the other, and returns at
/// once: the rounding of the activations, then the products. All pointers are to its memory.
/// @throws as the checks; Error{unavailable} for a device that the kernels were not built for;
///         Error{device_lost} when CUDA refuses, with call, kernel and shapes
void launch_expert_gate_up_fp8(const ExpertGateUpFp8Params& params,
                               const LaunchOptions& options = {});
void launch_expert_down_fp8(const ExpertDownFp8Params& params, const LaunchOptions& options = {});

}  // namespace mimo_rt::cuda
