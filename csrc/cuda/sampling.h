// Host API of the sampling kernels as launches of their own. The persistent kernel calls the same
// device functions (device/tasks/sampling.cuh, draw_tokens.cuh, sample_rows.cuh) instead.
#pragma once

#include "cuda/launch_options.h"
#include "cuda/sampling_params.h"

namespace mimo_rt::cuda {

/// What can be said before a launch: sizes, ranges, alignment, missing pointers.
/// @throws Error{invalid_argument, unsupported_shape, capacity} that names the field
void check_sample(const SampleParams& params);
/// Of the rows themselves, which are in device memory, nothing.
void check_sample_rows(const SampleRowsParams& params);
void check_accept(const AcceptParams& params);

/// Checks, then launches on the current device (three kernels, one after the other) and returns at
/// once. All pointers are to its memory.
/// @throws as the check; Error{unavailable} for a device that the kernels were not built for;
///         Error{device_lost} when CUDA refuses, with call, kernel and shapes
void launch_sample(const SampleParams& params, const LaunchOptions& options = {});
/// The same in one kernel, when the best scores of the rows' parts are known (ProjectionStore::scores).
void launch_sample_rows(const SampleRowsParams& params, const LaunchOptions& options = {});
/// The same; one block, whatever the options say.
void launch_accept(const AcceptParams& params, const LaunchOptions& options = {});

}  // namespace mimo_rt::cuda
