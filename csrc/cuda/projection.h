// Host API of the projection kernels as launches of their own. The persistent kernel calls the same
// device functions (device/tasks/projection.cuh) instead.
#pragma once

#include "cuda/launch_options.h"
#include "cuda/projection_params.h"

namespace mimo_rt::cuda {

/// What can be said before a launch: sizes, strides, alignment, missing pointers.
/// @throws Error{invalid_argument, unsupported_shape, capacity} that names the field
void check_projection(const ProjectionParams& params);
void check_rms_norm(const RmsNormParams& params);

/// Checks, then launches on the current device and returns at once. All pointers are to its memory.
/// With ProjectionStore::scores every block writes a part: as many as the rows' scratches have.
/// @throws as the checks; Error{unavailable} for a device that the kernels were not built for;
///         Error{device_lost} when CUDA refuses, with call, kernel and shapes
void launch_projection(const ProjectionParams& params, const LaunchOptions& options = {});
void launch_rms_norm(const RmsNormParams& params, const LaunchOptions& options = {});

}  // namespace mimo_rt::cuda
