// Tasks whose tiles are shares of a row, or of an active expert: tile t is share t % tile_end of row t / tile_end.
#pragma once

#include "plan/task.h"

#include <algorithm>
#include <cstdint>
#include <numeric>

namespace mimo_rt {

/// Calls visit(share, first, stride) for every share that the task has of `num_rows` rows: it has it of rows first,
/// first + stride, … < num_rows.
template <typename Visit>
void for_each_share(const Task& task, uint32_t num_rows, const Visit& visit) {
  const uint64_t period = task.tile_end / std::gcd(task.tile_stride, task.tile_end);
  const uint64_t row_stride = period * task.tile_stride / task.tile_end;
  for (uint64_t i = 0; i < period; ++i) {
    const uint64_t tile = task.tile_first + i * task.tile_stride;
    if (tile >= uint64_t{task.tile_end} * num_rows) break;
    visit(static_cast<uint32_t>(tile % task.tile_end), static_cast<uint32_t>(tile / task.tile_end),
          static_cast<uint32_t>(std::min<uint64_t>(row_stride, num_rows)));
  }
}

}  // namespace mimo_rt
