// Dense products: output projections, router and head, dense gate and up.
#include "cpu/ops_linear.h"

#include "plan/buffers.h"
#include "plan/kinds.h"

#include <cstring>

namespace mimo_rt::cpu {
namespace {

/// nullptr: the task multiplies by no matrix, or by one that is known only at run time.
const PackedMatrix* matrix_of(const Task& task, const Worker& worker) {
  const Weights& weights = worker.weights;
  const DraftWeights* draft = worker.draft;
  switch (task.kind) {
    case TaskKind::qkv_proj: return &weights.layer(task.layer_idx).qkv;
    case TaskKind::o_proj: return &weights.layer(task.layer_idx).o_proj;
    case TaskKind::router: return &weights.layer(task.layer_idx).router;
    case TaskKind::gate_up_proj: return &weights.layer(task.layer_idx).gate_up;
    case TaskKind::down_proj: return &weights.layer(task.layer_idx).down;
    case TaskKind::lm_head: return &weights.lm_head();
    case TaskKind::draft_lm_head: return &draft->lm_head();
    case TaskKind::context_fc: return &draft->fc();
    case TaskKind::draft_o_proj: return &draft->layer(task.layer_idx).o_proj;
    case TaskKind::draft_gate_up_proj: return &draft->layer(task.layer_idx).gate_up;
    case TaskKind::draft_down_proj: return &draft->layer(task.layer_idx).down;
    default: return nullptr;
  }
}

/// What expert_down reads first; nullptr where the route is not known yet, or empty.
const PackedMatrix* first_expert_down(const Task& task, const Task* before, const Worker& worker) {
  if (!before || before->kind != TaskKind::expert_gate_up || before->layer_idx != task.layer_idx) return nullptr;
  const RouteTable& route = worker.step.plan->route;
  if (!*route.num_active) return nullptr;
  return &worker.weights.layer(task.layer_idx).expert_down[route.active_experts[0]];
}

/// Kernels write rows of any stride: these are the output's.
void write_logits(const Task& task, Worker& worker, const LinearInput& input) {
  const PlanState& plan = *worker.step.plan;
  const PackedMatrix& matrix = *matrix_of(task, worker);
  run_tiles(worker, task, matrix, input,
            [&](uint32_t row, uint32_t num_rows, uint32_t begin, uint32_t end) {
              worker.kernels.gemm(
                  static_cast<int>(matrix.format),
                  {matrix.row_group(begin), end - begin, matrix.k, worker.prepared.data(), num_rows,
                   plan.f32_row(task.output, row) + begin * kTileRows, plan.stride(task.output)});
            });
}

}  // namespace

ByteRange first_weights(const Task& task, const Task* before, const Worker& worker) {
  if (task.tile_first >= task.tile_end) return {};
  const bool is_context = task.kind == TaskKind::context_fc || task.kind == TaskKind::context_kv;
  if (is_draft(task.kind) && !worker.step.input->num_draft_rows) return {};
  if (is_context && !worker.step.input->num_context_rows) return {};
  if (task.kind == TaskKind::context_kv || task.kind == TaskKind::draft_qkv_proj)
    return first_head_weights(task, worker);
  const PackedMatrix* matrix =
      task.kind == TaskKind::expert_down ? first_expert_down(task, before, worker) : matrix_of(task, worker);
  if (!matrix) return {};
  const bool is_gate_up =
      task.kind == TaskKind::gate_up_proj || task.kind == TaskKind::draft_gate_up_proj;
  const uint32_t groups_per_tile = is_gate_up ? 2 : 1;
  const uint32_t tile_end = task.tile_stride == 1 ? task.tile_end : task.tile_first + 1;
  const uint8_t* begin = matrix->row_group(task.tile_first * groups_per_tile);
  const uint64_t bytes = static_cast<uint64_t>(tile_end - task.tile_first) * groups_per_tile *
                         row_group_bytes(matrix->format, matrix->k);
  return {begin, begin + std::min(bytes, kMaxPrefetchBytes)};
}

void capture_features(const Task& task, Worker& worker, uint32_t token, uint32_t col,
                      uint32_t num_cols) {
  if (!(task.flags & kCapture)) return;
  const PlanState& plan = *worker.step.plan;
  const StepInput& input = *worker.step.input;
  const auto slot = static_cast<uint32_t>(capture_index(plan.plan.shape(), task.layer_idx));
  bf16_t* row = worker.step.cache->feature_row(input.seq_idx[token], input.positions[token]);
  std::memcpy(row + slot * worker.config.hidden_size + col, plan.bf16_row(task.output, token) + col,
              sizeof(bf16_t) * num_cols);
}

void op_output_proj(const Task& task, Worker& worker) {
  const PlanState& plan = *worker.step.plan;
  const uint32_t hidden = worker.config.hidden_size;
  uint32_t width = worker.config.intermediate_size;
  if (task.kind == TaskKind::o_proj) {
    const LayerConfig& layer = worker.config.layers[task.layer_idx];
    width = layer.num_q_heads * layer.v_head_dim;
  } else if (task.kind != TaskKind::down_proj) {
    width = plan.stride(task.input);
  }
  const uint32_t num_rows = is_draft(task.kind) ? worker.step.input->num_draft_rows
                                                : worker.step.input->num_tokens;
  const LinearInput input{plan.bf16_row(task.input, 0), plan.stride(task.input), nullptr, num_rows,
                          width};
  multiply_tiles(worker, task, *matrix_of(task, worker), 1, input,
                 [&](const LinearResults& results) {
                   const uint32_t col = results.first_group * kTileRows;
                   const uint32_t num_cols = std::min(results.stride, hidden - col);
                   for (uint32_t i = 0; i < results.num_rows; ++i) {
                     const uint32_t row = results.first_row + i;
                     bf16_t* x = plan.bf16_row(task.output, row) + col;
                     worker.kernels.add_residual(results.row(i), num_cols, x);
                     capture_features(task, worker, row, col, num_cols);
                   }
                 });
}

void op_logits(const Task& task, Worker& worker) {
  write_logits(task, worker,
               task.kind == TaskKind::draft_lm_head
                   ? draft_consumer_rows(task, worker, 1)
                   : consumer_rows(task, worker, nullptr, worker.step.input->num_tokens));
}

void op_lm_head(const Task& task, Worker& worker) {
  const StepInput& step = *worker.step.input;
  const LinearInput input = consumer_rows(task, worker, step.logit_rows, step.num_logit_rows);
  if (step.wants_logits()) return write_logits(task, worker, input);
  if (task.tile_first >= task.tile_end) return;
  // Tiles of other tasks that this worker takes over count as its own. To the plan it is a task that
  // writes less than it may, and a reader that reads less: the same edges order them.
  BestLogits* best = worker.step.plan->best_logits(task);
  for (uint32_t row = 0; row < step.num_logit_rows; ++row) best[row].begin(step.num_best_logits);
  multiply_tiles(worker, task, *matrix_of(task, worker), 1, input, [&](const LinearResults& results) {
    const uint32_t first = results.first_group * kTileRows;
    const uint32_t num_logits = std::min(results.stride, worker.config.vocab_size - first);
    for (uint32_t i = 0; i < results.num_rows; ++i)
      best[results.first_row + i].add(results.row(i), num_logits, static_cast<int32_t>(first));
  });
}

BestLogitRow best_of_row(const Worker& worker, uint32_t row) {
  const PlanState& plan = *worker.step.plan;
  BestLogits best;
  best.begin(worker.step.input->num_best_logits);
  for (const Task* task : plan.head_tasks) best.add(plan.best_logits(*task)[row]);
  return {best, worker.config.vocab_size};
}

void store_gate_up(const Task& task, Worker& worker, const LinearResults& results,
                   uint32_t act_row, uint32_t width) {
  const PlanState& plan = *worker.step.plan;
  const uint32_t first_pair = results.first_group / 2;
  for (uint32_t i = 0; i < results.num_rows; ++i) {
    const float* y = results.row(i);
    bf16_t* act = plan.bf16_row(task.output, act_row + i);
    for (uint32_t p = 0; p < results.num_groups / 2; ++p) {
      const uint32_t col = (first_pair + p) * kTileRows;
      const float* gate = y + 2 * p * kTileRows;
      // Always 16 at a time, so that no element is ever a kernel's vector tail.
      if (col + kTileRows <= width) {
        worker.kernels.silu_mul(gate, gate + kTileRows, kTileRows, act + col);
      } else {
        bf16_t whole[kTileRows];
        worker.kernels.silu_mul(gate, gate + kTileRows, kTileRows, whole);
        std::copy(whole, whole + (width - col), act + col);
      }
    }
  }
}

void op_gate_up_proj(const Task& task, Worker& worker) {
  const bool drafts = is_draft(task.kind);
  const uint32_t width =
      drafts ? worker.draft->config().intermediate_size : worker.config.intermediate_size;
  const LinearInput input =
      drafts ? draft_consumer_rows(task, worker, 0)
             : consumer_rows(task, worker, nullptr, worker.step.input->num_tokens);
  multiply_tiles(worker, task, *matrix_of(task, worker), 2, input,
                 [&](const LinearResults& results) {
                   store_gate_up(task, worker, results, results.first_row, width);
                 });
}

}  // namespace mimo_rt::cpu
