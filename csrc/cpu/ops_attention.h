// Which rows of an attention task are computed together.
#pragma once

#include "cpu/ops_context.h"
#include "plan/task_shares.h"

#include <algorithm>

namespace mimo_rt::cpu {

/// Rows that see the same keys from the first on, up to their own last one, and q heads of theirs
/// that share a kv head.
struct AttentionGroup {
  uint32_t q_head, num_q, kv_head;
  uint32_t seq, begin;  ///< `begin`: position of the first key
  uint32_t num_rows;
  uint32_t rows[kMaxAttendRows];  ///< ascending
};

/// What decides whether rows may share a group.
struct FirstKey {
  uint32_t seq, begin;
  bool operator==(const FirstKey&) const = default;
};

/// Calls attend(group) until rows first, first + stride, … < num_rows are done with the heads of
/// `group`.
template <typename FirstKeyOf, typename Attend>
void for_rows_in_groups(AttentionGroup group, uint32_t first, uint32_t stride, uint32_t num_rows,
                        const FirstKeyOf& first_key_of, const Attend& attend) {
  const uint32_t max_rows = max_attend_rows(group.num_q);
  group.num_rows = 0;
  for (uint32_t row = first; row < num_rows; row += stride) {
    const FirstKey key = first_key_of(row);
    if (group.num_rows &&
        (group.num_rows == max_rows || key != FirstKey{group.seq, group.begin})) {
      attend(group);
      group.num_rows = 0;
    }
    group.seq = key.seq;
    group.begin = key.begin;
    group.rows[group.num_rows++] = row;
  }
  if (group.num_rows) attend(group);
}

/// Calls attend(group) until all tiles of the task are done: shares of the q heads of a row.
template <typename FirstKeyOf, typename Attend>
void for_attention_groups(const Task& task, uint32_t num_rows, uint32_t num_q_heads,
                          uint32_t q_per_kv, const FirstKeyOf& first_key_of,
                          const Attend& attend) {
  for_each_share(task, num_rows, [&](uint32_t share, uint32_t first, uint32_t stride) {
    const uint32_t end = share_begin(share + 1, task.tile_end, num_q_heads);
    for (uint32_t head = share_begin(share, task.tile_end, num_q_heads); head < end;) {
      const uint32_t kv_head = head / q_per_kv;
      const uint32_t num_q = std::min(end, (kv_head + 1) * q_per_kv) - head;
      for_rows_in_groups({head, num_q, kv_head, 0, 0, 0, {}}, first, stride, num_rows, first_key_of,
                         attend);
      head += num_q;
    }
  });
}

}  // namespace mimo_rt::cpu
