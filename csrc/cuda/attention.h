// Host API of the attention kernels as launches of their own. The persistent kernel calls the same
// device functions (device/tasks/attention.cuh) instead.
#pragma once

#include "cuda/attention_params.h"
#include "cuda/launch_options.h"

namespace mimo_rt::cuda {

/// What can be said before a launch: sizes, strides, alignment, missing pointers.
/// @throws Error{invalid_argument, unsupported_shape, capacity} that names the field
void check_attention(const AttentionParams& params);

/// Checks, then launches two kernels on the current device, one after the other, and returns at
/// once: the splits, then their combination. All pointers are to the device's memory.
/// @throws as the check; Error{unavailable} for a device that the kernels were not built for;
///         Error{device_lost} when CUDA refuses, with call, kernel and shapes
void launch_attention(const AttentionParams& params, const LaunchOptions& options = {});

}  // namespace mimo_rt::cuda
