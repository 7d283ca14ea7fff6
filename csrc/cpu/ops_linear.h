// The matrix products of all ops: blocks of rows, runs of row groups, and an epilogue per block of
// results.
#pragma once

#include "cpu/ops_context.h"

#include <algorithm>

namespace mimo_rt::cpu {

/// What a waiting worker prefetches. A quarter of a usual L2 cache: more would push out what the
/// task before still needs.
inline constexpr uint64_t kMaxPrefetchBytes = 128 * 1024;

/// Kinds whose rows are those of the draft's block.
constexpr bool is_draft(TaskKind kind) {
  return kind >= TaskKind::draft_embed && kind <= TaskKind::draft_sample;
}

/// BF16 rows that a matrix is applied to.
struct LinearInput {
  const bf16_t* rows;       ///< [*, stride]
  uint32_t stride;          ///< elements
  const uint32_t* row_ids;  ///< [num_rows] or nullptr: 0, 1, 2, …
  uint32_t num_rows;
  uint32_t num_elements;    ///< of a row, at most the matrix's k
};

/// Results y of rows [first_row, first_row + num_rows) and row groups [first_group, first_group +
/// num_groups).
struct LinearResults {
  uint32_t first_row, num_rows;
  uint32_t first_group, num_groups;
  const float* y;   ///< [num_rows, stride]
  uint32_t stride;  ///< 16 * num_groups

  const float* row(uint32_t i) const { return y + uint64_t{i} * stride; }
};

/// Prepares rows [first_row, first_row + num_rows) of `input` for `matrix`, at `prepared` in the
/// worker's scratch.
inline void prepare_rows(Worker& worker, const PackedMatrix& matrix, const LinearInput& input,
                         uint32_t first_row, uint32_t num_rows, uint8_t* prepared) {
  PrepareArgs args{};
  args.x = input.row_ids ? input.rows : input.rows + uint64_t{first_row} * input.stride;
  args.x_stride = input.stride;
  args.row_ids = input.row_ids ? input.row_ids + first_row : nullptr;
  args.num_tokens = num_rows;
  args.k_valid = input.num_elements;
  args.k = matrix.k;
  args.prepared = prepared;
  worker.kernels.prepare(static_cast<int>(matrix.format), args);
}

inline void prepare_rows(Worker& worker, const PackedMatrix& matrix, const LinearInput& input,
                         uint32_t first_row, uint32_t num_rows) {
  prepare_rows(worker, matrix, input, first_row, num_rows, worker.prepared.data());
}

/// Row groups [group_begin, group_end) of `matrix` times the rows at `prepared`, as many per call
/// as `results` holds.
template <typename Epilogue>
void multiply_groups(Worker& worker, const PackedMatrix& matrix, const uint8_t* prepared,
                     uint32_t first_row, uint32_t num_rows, uint32_t group_begin,
                     uint32_t group_end, const Epilogue& epilogue) {
  // Even: a gate group and its up group never part.
  const uint32_t max_groups = kResultFloats / (kTileRows * num_rows) & ~1u;
  auto* y = reinterpret_cast<float*>(worker.results.data());
  for (uint32_t group = group_begin; group < group_end;) {
    const uint32_t num_groups = std::min(max_groups, group_end - group);
    const uint32_t stride = num_groups * kTileRows;
    worker.kernels.gemm(static_cast<int>(matrix.format),
                        {matrix.row_group(group), num_groups, matrix.k, prepared, num_rows, y,
                         stride});
    epilogue(LinearResults{first_row, num_rows, group, num_groups, y, stride});
    group += num_groups;
  }
}
static_assert(kResultFloats / (kTileRows * kMaxBlockTokens) >= 2);

template <typename Epilogue>
void multiply_groups(Worker& worker, const PackedMatrix& matrix, uint32_t first_row,
                     uint32_t num_rows, uint32_t group_begin, uint32_t group_end,
                     const Epilogue& epilogue) {
  multiply_groups(worker, matrix, worker.prepared.data(), first_row, num_rows, group_begin,
                  group_end, epilogue);
}

/// Tiles of a task with trip count `once`.
constexpr uint32_t count_tiles(const Task& task) {
  if (task.tile_first >= task.tile_end) return 0;
  return (task.tile_end - task.tile_first - 1) / task.tile_stride + 1;
}

/// Parts that its tiles are taken in, for shorter ones of which a worker would ask too often.
constexpr uint32_t count_parts(const Task& task) {
  constexpr uint32_t kMaxParts = 16, kMinPartNs = 5'000;
  const uint32_t most = std::clamp(task.cost_ns / kMinPartNs, 1u, kMaxParts);
  return std::min(count_tiles(task), most);
}

/// Calls run(tile_begin, tile_end) for tiles [first, last) of those that a task has, once for all
/// where they lie together.
template <typename Run>
void for_tile_runs(const Task& task, uint32_t first, uint32_t last, const Run& run) {
  if (task.tile_stride == 1) return run(task.tile_first + first, task.tile_first + last);
  for (uint32_t i = first; i < last; ++i) {
    const uint32_t tile = task.tile_first + i * task.tile_stride;
    run(tile, tile + 1);
  }
}

/// Calls run(first_row, num_rows, tile_begin, tile_end) for the tiles of a task, and for what
/// others have left of theirs, with blocks of prepared rows of `input`. A unit: a part of the
/// tiles, for one block.
template <typename Run>
void run_tiles(Worker& worker, const Task& task, const PackedMatrix& matrix,
               const LinearInput& input, const Run& run) {
  const uint32_t num_blocks = (input.num_rows + kMaxBlockTokens - 1) / kMaxBlockTokens;
  uint32_t prepared_block = num_blocks;  // none
  const auto num_units = [&](const Task& t) { return num_blocks * count_parts(t); };
  run_shared(worker.place, task, worker.epoch, num_units,
             [&](const Task& t, uint32_t begin, uint32_t end) {
    const uint32_t num_parts = count_parts(t), num_tiles = count_tiles(t);
    for (uint32_t unit = begin; unit < end;) {
      const uint32_t block = unit / num_parts, part = unit % num_parts;
      const uint32_t part_end = std::min(num_parts, part + (end - unit));
      const uint32_t row = block * kMaxBlockTokens;
      const uint32_t num_rows = std::min(kMaxBlockTokens, input.num_rows - row);
      if (block != prepared_block) prepare_rows(worker, matrix, input, row, num_rows);
      prepared_block = block;
      for_tile_runs(t, share_begin(part, num_parts, num_tiles),
                    share_begin(part_end, num_parts, num_tiles),
                    [&](uint32_t b, uint32_t e) { run(row, num_rows, b, e); });
      unit += part_end - part;
    }
  });
}

/// The same with `groups_per_tile` row groups per tile; the epilogue sees every result once.
template <typename Epilogue>
void multiply_tiles(Worker& worker, const Task& task, const PackedMatrix& matrix,
                    uint32_t groups_per_tile, const LinearInput& input, const Epilogue& epilogue) {
  run_tiles(worker, task, matrix, input,
            [&](uint32_t row, uint32_t num_rows, uint32_t begin, uint32_t end) {
              multiply_groups(worker, matrix, row, num_rows, begin * groups_per_tile,
                              end * groups_per_tile, epilogue);
            });
}

/// Normalised rows for a task that consumes them, by token: `h`, or x normalised here when the
/// norm is fused.
LinearInput consumer_rows(const Task& task, Worker& worker, const uint32_t* row_ids,
                          uint32_t num_rows);

/// The same for a task of the draft, rows of its block from `first_row` on.
LinearInput draft_consumer_rows(const Task& task, Worker& worker, uint32_t first_row);

/// output[act_row + row, 16 * pair …] = silu(gate) * up for results whose groups alternate gate,
/// up.
void store_gate_up(const Task& task, Worker& worker, const LinearResults& results,
                   uint32_t act_row, uint32_t width);

/// Columns [col, col + num_cols) of x, row `token`, become final with this task: with kCapture
/// they are features as well.
void capture_features(const Task& task, Worker& worker, uint32_t token, uint32_t col,
                      uint32_t num_cols);

/// What all lm_head tasks have kept of row `row` in a step that wants no logits.
BestLogitRow best_of_row(const Worker& worker, uint32_t row);

/// One row of the target's embedding.
void gather_embedding(const Worker& worker, int32_t token_id, bf16_t* out);

void op_qkv_proj(const Task& task, Worker& worker);
void op_output_proj(const Task& task, Worker& worker);   ///< o_proj, down_proj, the draft's
void op_logits(const Task& task, Worker& worker);        ///< router, the draft's lm_head
void op_lm_head(const Task& task, Worker& worker);
void op_gate_up_proj(const Task& task, Worker& worker);  ///< and the draft's
void op_select_experts(const Task& task, Worker& worker);
void op_expert_gate_up(const Task& task, Worker& worker);
void op_expert_down(const Task& task, Worker& worker);
void op_attention(const Task& task, Worker& worker);
void op_embed(const Task& task, Worker& worker);
void op_rms_norm(const Task& task, Worker& worker);
void op_sample(const Task& task, Worker& worker);
void op_context_fc(const Task& task, Worker& worker);
void op_context_norm(const Task& task, Worker& worker);
void op_context_kv(const Task& task, Worker& worker);
void op_draft_embed(const Task& task, Worker& worker);
void op_draft_norm(const Task& task, Worker& worker);
void op_draft_qkv_proj(const Task& task, Worker& worker);
void op_draft_attention(const Task& task, Worker& worker);
void op_draft_sample(const Task& task, Worker& worker);
void op_accept(const Task& task, Worker& worker);

/// first_weights of the two kinds whose tiles are heads.
ByteRange first_head_weights(const Task& task, const Worker& worker);

/// Whether the heads of a draft fit the scratch: a whole head is computed at once.
bool draft_heads_fit(const DraftConfig& config);

}  // namespace mimo_rt::cpu
