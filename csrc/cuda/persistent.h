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

/// That blocks which wait for each other are resident at the same time, of which the device holds `max_blocks`.
/// @throws Error{unavailable}
void check_resident(uint32_t num_blocks, uint32_t max_blocks, uint32_t num_sms);

// How CUDA refuses a launch whose blocks cannot be resident at the same time; 701 is also that of a block
// with too many registers or threads. Without CUDA's headers, so that it is tested on every machine;
// persistent.cu compares the numbers.
inline constexpr int kLaunchOutOfResources = 701;       ///< cudaErrorLaunchOutOfResources
inline constexpr int kCooperativeLaunchTooLarge = 720;  ///< cudaErrorCooperativeLaunchTooLarge

/// That a launch was not refused, as it may be when others hold multiprocessors just now, which
/// check_resident cannot know. `status`: the cudaError_t of the launch; others than those above pass.
/// @throws Error{unavailable}: nothing was launched, later launches may be
void check_room(int status, uint32_t num_blocks);

/// The kernel on one device, asked once what it can hold.
class PersistentKernel {
 public:
  /// On the current device. @throws Error{unavailable} for one that the kernel was not built for, or
  /// a driver that is too old
  PersistentKernel();

  /// Checks, also that all blocks are resident at the same time (they wait for each other), then
  /// launches cooperatively on the same device, which is current, and returns at once.
  /// `options.num_blocks` is the number of workers in the lists: never 0.
  /// @throws as the checks; Error{unavailable} for fewer multiprocessors than blocks, also such that
  ///         others hold: nothing was launched; Error{device_lost} when CUDA refuses otherwise
  void launch(const PersistentParams& params, const LaunchOptions& options) const;

 private:
  uint32_t num_sms_ = 0, max_blocks_ = 0;  ///< resident at the same time
};

}  // namespace mimo_rt::cuda
