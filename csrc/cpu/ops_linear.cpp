// Dense products: output projections, router and head, dense gate and up.
#include "cpu/ops_linear.h"

#include "plan/buffers.h"

#include <cstring>

namespace mimo_rt::cpu {
namespace {

const PackedMatrix& matrix_of(const Task& task, const Weights& weights) {
  if (task.kind == TaskKind::lm_head) return weights.lm_head();
  const LayerWeights& layer = weights.layer(task.layer_idx);
  switch (task.kind) {
    case TaskKind::qkv_proj: return layer.qkv;
    case TaskKind::o_proj: return layer.o_proj;
    case TaskKind::router: return layer.router;
    case TaskKind::gate_up_proj: return layer.gate_up;
    default: return layer.down;
  }
}

bool reads_a_dense_matrix(TaskKind kind) {
  switch (kind) {
    case TaskKind::qkv_proj:
    case TaskKind::o_proj:
    case TaskKind::router:
    case TaskKind::gate_up_proj:
    case TaskKind::down_proj:
    case TaskKind::lm_head: return true;
    default: return false;
  }
}

}  // namespace

ByteRange first_weights(const Task& task, const Weights& weights) {
  // A quarter of a usual L2 cache: more would push out what the task before still needs.
  constexpr uint64_t kMaxPrefetchBytes = 128 * 1024;
  if (!reads_a_dense_matrix(task.kind) || task.tile_first >= task.tile_end) return {};
  const PackedMatrix& matrix = matrix_of(task, weights);
  const uint32_t groups_per_tile = task.kind == TaskKind::gate_up_proj ? 2 : 1;
  const uint32_t tile_end = task.tile_stride == 1 ? task.tile_end : task.tile_first + 1;
  const uint8_t* begin = matrix.row_group(task.tile_first * groups_per_tile);
  const uint64_t bytes = static_cast<uint64_t>(tile_end - task.tile_first) * groups_per_tile *
                         row_group_bytes(matrix.format, matrix.k);
  return {begin, begin + std::min(bytes, kMaxPrefetchBytes)};
}

void op_output_proj(const Task& task, Worker& worker) {
  const PlanState& plan = *worker.step.plan;
  const uint32_t hidden = worker.config.hidden_size;
  uint32_t width = worker.config.intermediate_size;
  if (task.kind == TaskKind::o_proj) {
    const LayerConfig& layer = worker.config.layers[task.layer_idx];
    width = layer.num_q_heads * layer.v_head_dim;
  }
  const LinearInput input{plan.bf16_row(task.input, 0), plan.stride(task.input), nullptr,
                          worker.step.input->num_tokens, width};
  multiply_tiles(worker, task, matrix_of(task, worker.weights), 1, input,
                 [&](const LinearResults& results) {
                   const uint32_t col = results.first_group * kTileRows;
                   const uint32_t num_cols = std::min(results.stride, hidden - col);
                   for (uint32_t i = 0; i < results.num_rows; ++i) {
                     bf16_t* x = plan.bf16_row(task.output, results.first_row + i) + col;
                     worker.kernels.add_residual(results.row(i), num_cols, x);
                   }
                 });
}

void op_logits(const Task& task, Worker& worker) {
  const PlanState& plan = *worker.step.plan;
  const StepInput& step = *worker.step.input;
  const bool is_head = task.kind == TaskKind::lm_head;
  const LinearInput input =
      is_head ? consumer_rows(task, worker, step.logit_rows, step.num_logit_rows)
              : consumer_rows(task, worker, nullptr, step.num_tokens);
  multiply_tiles(worker, task, matrix_of(task, worker.weights), 1, input,
                 [&](const LinearResults& results) {
                   for (uint32_t i = 0; i < results.num_rows; ++i) {
                     float* out = plan.f32_row(task.output, results.first_row + i) +
                                  results.first_group * kTileRows;
                     std::memcpy(out, results.row(i), sizeof(float) * results.stride);
                   }
                 });
}

void store_gate_up(Worker& worker, const LinearResults& results, uint32_t act_row, uint32_t width) {
  const PlanState& plan = *worker.step.plan;
  const uint32_t first_pair = results.first_group / 2;
  for (uint32_t i = 0; i < results.num_rows; ++i) {
    const float* y = results.row(i);
    bf16_t* act = plan.bf16_row(kAct, act_row + i);
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
  const LinearInput input =
      consumer_rows(task, worker, nullptr, worker.step.input->num_tokens);
  multiply_tiles(worker, task, matrix_of(task, worker.weights), 2, input,
                 [&](const LinearResults& results) {
                   store_gate_up(worker, results, results.first_row,
                                 worker.config.intermediate_size);
                 });
}

}  // namespace mimo_rt::cpu
