// What a wait that was given up leaves for the host. For g++ and nvcc.
#pragma once

#include <cstdint>

namespace mimo_rt::cuda {

/// The three kinds of edges, see device/sync/counter.cuh and tagged.cuh. An edge between tasks of
/// one worker is their order in its list: nothing to wait for, nothing to report.
enum class EdgeKind : uint32_t { counter, tag };

/// Who waits for what.
struct WaitSite {
  uint32_t worker_idx, task_idx;
  uint32_t kind;       ///< TaskKind
  uint32_t layer_idx;  ///< as in the task
  EdgeKind edge;
  uint32_t edge_idx;  ///< the plan's counter, of both kinds
};

/// In pinned host memory, zero before the launch. Written once, by the thread that gives up first.
struct HangReport {
  uint32_t is_written;  ///< 1 (release, system scope) after the rest
  WaitSite site;
  uint32_t expected, seen;  ///< counter values or tags
};

// Values of the stop word, in device memory.
inline constexpr uint32_t kRunning = 0;
inline constexpr uint32_t kHung = 1;  ///< a wait was given up: everyone leaves

/// What waits need. The caller zeroes the stop word and the report before a launch.
struct Watchdog {
  uint32_t* stop = nullptr;
  HangReport* report = nullptr;
  uint64_t deadline_ns = 0;  ///< of one wait
};

}  // namespace mimo_rt::cuda
