// Host API of the relay kernel, which times the edges between tasks (device/tasks/edge_relay.cuh).
#pragma once

#include "cuda/edge_relay_params.h"
#include "cuda/launch_options.h"

namespace mimo_rt::cuda {

/// What can be said before a launch of `num_blocks` blocks: numbers out of range, missing pointers.
/// @throws Error{invalid_argument, capacity} that names the field
void check_edge_relay(const EdgeRelayParams& params, uint32_t num_blocks);

/// Checks, then launches cooperatively (the blocks wait for each other) on the current device and
/// returns at once. All pointers are to its memory.
/// @throws as the check; Error{unavailable} for a device that the kernel was not built for;
///         Error{device_lost} when CUDA refuses
void launch_edge_relay(const EdgeRelayParams& params, const LaunchOptions& options = {});

}  // namespace mimo_rt::cuda
