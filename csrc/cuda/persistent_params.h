// What the persistent kernel is given. For g++ and nvcc.
//
// A worker is a block; worker w runs tasks[worker_begin[w]] .. tasks[worker_begin[w + 1] - 1] in
// order, epoch after epoch. The task words are the plan's; what their layers and buffer ids mean on
// this device stands in `operands`, one entry per stage of the plan (device_plan.h makes them).
#pragma once

#include "cuda/draft_params.h"
#include "cuda/expert_mlp_params.h"
#include "cuda/hang_report.h"
#include "cuda/projection_params.h"
#include "cuda/round_params.h"
#include "cuda/router_params.h"
#include "cuda/step_params.h"
#include "plan/task.h"

namespace mimo_rt::cuda {

// 8 compute warps, then a second kind of warp group: controller, loader, waiter, publisher.
inline constexpr uint32_t kServiceWarps = 4;
inline constexpr uint32_t kPersistentThreads = 32 * (kComputeWarps + kServiceWarps);

// setmaxnreg: what a thread has after the roles have parted. A block can share out only what it was
// launched with, kLaunchRegisters for each of its threads: an increase beyond that waits for ever.
// That ptxas gives the kernel as many is checked by tests/python/test_cuda_kernels.py.
inline constexpr uint32_t kLaunchRegisters = 168;  ///< 64 Ki / 384 threads, rounded down to 8
inline constexpr uint32_t kComputeRegisters = 216;
inline constexpr uint32_t kServiceRegisters = 72;
static_assert(kComputeWarps * kComputeRegisters + kServiceWarps * kServiceRegisters <=
              (kComputeWarps + kServiceWarps) * kLaunchRegisters);
static_assert(kComputeWarps % 4 == 0 && kServiceWarps % 4 == 0, "setmaxnreg is of a warp group");

/// The role functions of a task, and which units of theirs its tiles are.
enum class TaskBody : uint32_t {
  nothing,         ///< a task without rows in this epoch
  embed,           ///< a tile is a row
  rms_norm,        ///< a tile is a row
  projection,      ///< without a norm; a tile is a row group
  gate_up,         ///< a projection; a tile is two row groups: 16 columns of gate and up
  attention,       ///< a tile is a kv head of a row
  router,          ///< a tile is 16 experts
  select_experts,  ///< one tile
  expert_gate_up,  ///< a tile is a share of an expert's pairs of row groups (plan/task.h)
  expert_down,     ///< a tile is a row group
  publish_route,   ///< select_experts, and the route goes out by a tag edge
  sample,          ///< a task is a share
  accept,          ///< a task is a share
  context_norm,    ///< a tile is a row of a draft's context
  draft_embed,     ///< a tile is a row of the block
  heads,           ///< a projection; a tile is a head
  draft_sample,    ///< a tile is a row of the block
};

/// How many rows a task has is known when its epoch begins.
enum class RowCount : uint32_t {
  fixed,
  tokens,  ///< never 0: DevicePlan::tables wants 1 or more, accept_round sets up an anchor
  logit_rows, sampled_rows, context_rows, draft_rows,
  draft_logit_rows,  ///< of the block, but for the anchor's
};

/// See device/sync/tagged.cuh. Low half: payload; high half: tag.
using TaggedWord = uint64_t;

/// The tag edge by which the route of a layer comes to its readers. Its words are a RouteTable with
/// as many experts as slots: more are not active.
struct RouteEdge {
  TaggedWord* rows = nullptr;     ///< two rows of num_words(max_slots); nullptr: none, the route is in memory
  uint32_t counter = kNoCounter;  ///< the plan's, which the producer signals and readers wait for
  uint32_t max_slots = 0;

#if defined(__CUDACC__)
  __host__ __device__
#endif
  static constexpr uint32_t num_words(uint32_t max_slots) {
    return 4 * max_slots + 2;
  }
};
static_assert(4 * RouteEdge::num_words(5) == RouteTable::bytes(5, 5));
inline constexpr uint32_t kMaxRouteWords = RouteEdge::num_words(kMaxTaggedSlots);

/// For a task that publishes: its table is the block's own, so it says here how many are active.
struct PublishRouteParams {
  SelectExpertsParams select;
  uint32_t* num_active = nullptr;
};

/// What the tasks of a stage work on, as bytes, so that it travels with the task word.
struct alignas(16) TaskOperands {
  static constexpr uint32_t kBytes = 224;
  uint8_t params[kBytes];  ///< EmbedParams, RmsNormParams, ProjectionParams, …
  RouteEdge route;         ///< of select_experts and of the expert tasks
  TaskBody body;
  RowCount row_count;      ///< goes to the word at `row_count_at` of params; 0: nothing to do
  uint32_t row_count_at;
  uint32_t reads_features;  ///< of a projection: its x is the FeatureRing of the step's first row
};
static_assert(sizeof(TaskOperands) == 256);
static_assert(sizeof(EmbedParams) <= TaskOperands::kBytes);
static_assert(sizeof(RmsNormParams) <= TaskOperands::kBytes);
static_assert(sizeof(ProjectionParams) <= TaskOperands::kBytes);
static_assert(sizeof(AttendRowsParams) <= TaskOperands::kBytes);
static_assert(sizeof(RouterLogitsParams) <= TaskOperands::kBytes);
static_assert(sizeof(PublishRouteParams) <= TaskOperands::kBytes);
static_assert(sizeof(ExpertGateUpParams) <= TaskOperands::kBytes);
static_assert(sizeof(ExpertDownParams) <= TaskOperands::kBytes);
static_assert(sizeof(SampleRowsParams) <= TaskOperands::kBytes);
static_assert(sizeof(AcceptRoundParams) <= TaskOperands::kBytes);
static_assert(sizeof(ContextNormParams) <= TaskOperands::kBytes);
static_assert(sizeof(DraftEmbedParams) <= TaskOperands::kBytes);
static_assert(sizeof(HeadsParams) <= TaskOperands::kBytes);
static_assert(sizeof(DraftSampleParams) <= TaskOperands::kBytes);

/// One counter per 128 bytes: pollers of one do not slow the signallers of another.
struct alignas(128) CounterCell {
  uint32_t value;
};

/// When a block did a task, by %globaltimer.
struct alignas(128) TaskStamps {
  uint64_t fetched_ns;  ///< its word was in a slot, and the inputs of the task before were there
  uint64_t begin_ns;    ///< all compute warps had met, its inputs were there
  uint64_t end_ns[kComputeWarps];
  uint32_t ring_ns[kComputeWarps];  ///< waits for bytes in the ring between begin and end
};

struct PersistentParams {
  const Task* tasks = nullptr;
  const uint32_t* operand_idx = nullptr;     ///< of the same tasks, into `operands`
  const TaskOperands* operands = nullptr;
  const uint32_t* worker_begin = nullptr;    ///< [num_blocks + 1]
  CounterCell* counters = nullptr;           ///< zeroed once, before the first epoch
  const uint32_t* counter_totals = nullptr;  ///< signals per epoch
  uint32_t gate_counter = 0;  ///< its last signal of an epoch ends the epoch
  uint32_t first_epoch = 0;   ///< epochs that earlier launches have run on these counters
  uint32_t num_epochs = 1;    ///< of this launch
  const StepTables* step = nullptr;  ///< nullptr: all row counts are fixed
  Watchdog watchdog;
  TaskStamps* stamps = nullptr;  ///< of the same tasks, in the last epoch; nullptr: none are taken
  uint32_t delay_seed = 0;  ///< for tests: tasks begin and signal late, see delays.cuh; 0: not
};

}  // namespace mimo_rt::cuda
