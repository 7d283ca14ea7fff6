// Runs numbered work items on a few threads that live only for the call.
#pragma once

#include "weights/weights.h"

#include <cstdint>
#include <functional>

namespace mimo_rt {

struct WorkItems {
  uint64_t num_items = 0;
  uint64_t total_bytes = 0;                         ///< of all items, for `progress`
  std::function<uint64_t(uint64_t item_idx)> run;   ///< does one item; returns its bytes
  ProgressCallback progress;                        ///< may be empty
  uint32_t num_threads = 0;                         ///< 0: num_usable_cores()
  const char* where = "";                           ///< the public operation, for errors
};

/// Every thread takes the next item when it is free. The caller works too and `progress` is called
/// on its thread only: at the start, at most every 50 ms, and at the end.
/// Rethrows the error of the first failing item (by number, whatever the number of threads).
/// @throws Error{cancelled} when `progress` returns false
void run_work_items(const WorkItems& work);

}  // namespace mimo_rt
