// What the persistent kernel is given. For g++ and nvcc.
//
// A worker is a block; worker w runs tasks[worker_begin[w]] .. tasks[worker_begin[w + 1] - 1] in
// order, epoch after epoch. The task words are the plan's; what their buffer ids and layers mean on
// this device stands in `operands`, one entry per task, made by the host.
#pragma once

#include "cuda/expert_mlp_params.h"
#include "cuda/hang_report.h"
#include "cuda/projection_params.h"
#include "plan/task.h"

namespace mimo_rt::cuda {

// 8 compute warps, then a second kind of warp group: controller, loader, waiter, publisher.
inline constexpr uint32_t kServiceWarps = 4;
inline constexpr uint32_t kPersistentThreads = 32 * (kComputeWarps + kServiceWarps);

// setmaxnreg: what a thread has after the roles have parted. A block can share out only what it was
// launched with, kLaunchRegisters for each of its threads: an increase beyond that waits for ever.
// That ptxas gives the kernel as many is checked by tests/python/test_cuda_kernels.py.
inline constexpr uint32_t kLaunchRegisters = 168;  ///< 64 Ki / 384 threads, rounded down to 8
inline constexpr uint32_t kComputeRegisters = 224;
inline constexpr uint32_t kServiceRegisters = 56;
static_assert(kComputeWarps * kComputeRegisters + kServiceWarps * kServiceRegisters <=
              (kComputeWarps + kServiceWarps) * kLaunchRegisters);
static_assert(kComputeWarps % 4 == 0 && kServiceWarps % 4 == 0, "setmaxnreg is of a warp group");

/// A task of the list and what it works on. Exactly one of the pointers below is meant, by kind.
enum class TaskBody : uint32_t { rms_norm, projection, expert_gate_up, expert_down };

/// Params of one task as bytes, so that they travel with the task word.
struct alignas(16) TaskOperands {
  static constexpr uint32_t kBytes = 240;
  uint8_t params[kBytes];  ///< RmsNormParams, ProjectionParams, …
  TaskBody body;
  uint32_t padding[3];
};
static_assert(sizeof(TaskOperands) == 256);
static_assert(sizeof(RmsNormParams) <= TaskOperands::kBytes);
static_assert(sizeof(ProjectionParams) <= TaskOperands::kBytes);
static_assert(sizeof(ExpertGateUpParams) <= TaskOperands::kBytes);
static_assert(sizeof(ExpertDownParams) <= TaskOperands::kBytes);

/// One counter per 128 bytes: pollers of one do not slow the signallers of another.
struct alignas(128) CounterCell {
  uint32_t value;
};

struct PersistentParams {
  const Task* tasks = nullptr;
  const TaskOperands* operands = nullptr;    ///< of the same tasks
  const uint32_t* worker_begin = nullptr;    ///< [num_blocks + 1]
  CounterCell* counters = nullptr;           ///< zeroed once, before the first epoch
  const uint32_t* counter_totals = nullptr;  ///< signals per epoch
  uint32_t gate_counter = 0;  ///< its last signal of an epoch ends the epoch
  uint32_t first_epoch = 0;   ///< epochs that earlier launches have run on these counters
  uint32_t num_epochs = 1;    ///< of this launch
  Watchdog watchdog;
};

}  // namespace mimo_rt::cuda
