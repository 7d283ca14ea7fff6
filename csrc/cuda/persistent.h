// Host API of the persistent kernel.
#pragma once

#include "cuda/launch_options.h"
#include "cuda/persistent_params.h"

namespace mimo_rt::cuda {

/// Longest deadline of a wait for another block. Waits inside a block wait for these, and trap after
/// 10 s: the two waits of a task fit, and the wait for the end of an epoch, which has twice as long.
inline constexpr uint64_t kMaxDeadlineNs = 3'000'000'000;

/// What can be said before a launch: missing pointers, numbers out of range.
/// @throws Error{invalid_argument} that names the field
void check_persistent(const PersistentParams& params, uint32_t num_blocks);

/// Checks, also that all blocks are resident at the same time (they wait for each other), then
/// launches cooperatively on the current device and returns at once. `options.num_blocks` is the
/// number of workers in the lists: never 0.
/// @throws as the check; Error{unavailable} for a device that the kernel was not built for, a
///         driver that is too old, or fewer multiprocessors than blocks; Error{device_lost} when
///         CUDA refuses
void launch_persistent(const PersistentParams& params, const LaunchOptions& options);

}  // namespace mimo_rt::cuda
