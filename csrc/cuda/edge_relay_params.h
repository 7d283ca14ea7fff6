// What the relay kernel is given: it times the edges between tasks by a token that is handed on and
// on. For g++ and nvcc.
#pragma once

#include <cstdint>

#include "cuda/persistent_params.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kRelayThreads = 32 * kComputeWarps;  ///< of a block; each has a value
inline constexpr uint32_t kMaxRelayHops = 1u << 30;            ///< in all launches on one memory

/// How the token goes from task to task. A hop is one task: all its threads take the values of the
/// task before, each that of another warp, and hand on one more.
enum class RelayEdge : uint32_t {
  same_worker,  ///< from task to task of a block, by an mbarrier; every block for itself
  tag,          ///< from block to block, as tagged words
  counter,      ///< from block to block, one signals and the next one waits
  gather,       ///< `num_signallers` blocks signal, all blocks wait
};

struct EdgeRelayParams {
  RelayEdge edge = RelayEdge::counter;
  uint32_t num_hops = 0;        ///< of this launch
  uint32_t first_hop = 0;       ///< hops that earlier launches have made on this memory
  uint32_t num_signallers = 1;  ///< of a hop; for any edge but gather 1
  /// [2, kRelayThreads], used by even and odd hops: the row of hop 0 before the first launch, that
  /// of hop first_hop + num_hops after this one. Not for tags.
  uint32_t* token = nullptr;
  uint64_t* words = nullptr;       ///< the same for tags, as tagged words; row 1 is zeroed at first
  CounterCell* counter = nullptr;  ///< zeroed before the first launch
  Watchdog watchdog;
};

}  // namespace mimo_rt::cuda
