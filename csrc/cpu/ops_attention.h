// Which rows of an attention task are computed together.
#pragma once

#include "cpu/ops_context.h"

#include <algorithm>

namespace mimo_rt::cpu {

/// Rows of one kv head that see the same keys from the first on, up to their own last one.
struct AttentionGroup {
  uint32_t kv_head, seq, begin;  ///< `begin`: position of the first key
  uint32_t num_rows;
  uint32_t rows[kMaxAttendRows];  ///< ascending
};

/// What decides whether rows may share a group.
struct FirstKey {
  uint32_t seq, begin;
  bool operator==(const FirstKey&) const = default;
};

/// Calls attend(group) until all tiles of the task (row * num_kv_heads + kv head) are done.
template <typename FirstKeyOf, typename Attend>
void for_attention_groups(const Task& task, uint32_t num_rows, uint32_t num_kv_heads,
                          uint32_t q_per_kv, const FirstKeyOf& first_key_of,
                          const Attend& attend) {
  const uint32_t max_rows = max_attend_rows(q_per_kv);
  for (uint32_t kv_head = 0; kv_head < num_kv_heads; ++kv_head) {
    AttentionGroup group{kv_head, 0, 0, 0, {}};
    for (uint32_t row = 0; row < num_rows; ++row) {
      const uint64_t tile = uint64_t{row} * num_kv_heads + kv_head;
      if (tile < task.tile_first || (tile - task.tile_first) % task.tile_stride) continue;
      const FirstKey first = first_key_of(row);
      if (group.num_rows &&
          (group.num_rows == max_rows || first != FirstKey{group.seq, group.begin})) {
        attend(group);
        group.num_rows = 0;
      }
      group.seq = first.seq;
      group.begin = first.begin;
      group.rows[group.num_rows++] = row;
    }
    if (group.num_rows) attend(group);
  }
}

}  // namespace mimo_rt::cpu
