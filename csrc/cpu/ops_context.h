// What the ops of a worker see: the step that all share, and memory of the worker's own.
#pragma once

#include "cpu/counters.h"
#include "cpu/kernels.h"
#include "cpu/work_stealing.h"
#include "engine/step.h"
#include "plan/route_table.h"
#include "plan/task.h"
#include "sampling/best_logits.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

namespace mimo_rt::cpu {

/// Rows are prepared and multiplied in blocks of at most this many: bounds the scratch of long
/// prefills.
inline constexpr uint32_t kMaxBlockTokens = 128;
/// Results of one GEMM call before their epilogue: 128 KiB stay in the L2 cache.
inline constexpr uint32_t kResultFloats = 32 * 1024;
/// Expert sums of one block of columns, over all tokens of the step.
inline constexpr uint32_t kExpertSumFloats = 256 * 1024;

/// Rows of one attention call, and q heads of all of them: bounds the scratch, and keeps it near
/// the L1 cache where heads are many.
inline constexpr uint32_t kMaxAttendRows = 8, kMaxAttendHeads = 32;

constexpr uint32_t max_attend_rows(uint32_t q_per_kv) {
  const uint32_t rows = kMaxAttendHeads / q_per_kv;
  return rows < 1 ? 1 : rows < kMaxAttendRows ? rows : kMaxAttendRows;
}

/// 64-byte aligned memory, not touched by the allocation: the first writer decides where it lies.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  /// @throws Error{out_of_memory}
  explicit AlignedBytes(uint64_t num_bytes);
  uint8_t* data() const { return data_.get(); }
  uint64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(uint8_t* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<uint8_t, Free> data_;
  uint64_t size_ = 0;
};

/// cos and sin of every row's position, for one (base, size) of rotation. Filled before each step.
class RopeTable {
 public:
  RopeTable(double theta, uint32_t rotary_dim, uint32_t max_tokens);

  bool serves(const LayerConfig& layer) const {
    return layer.rope_theta == theta_ && layer.rotary_dim == rotary_dim_;
  }
  /// Angles in float64, rounded to FP32 once: exact enough for any position.
  void fill(const uint32_t* positions, uint32_t num_tokens);
  /// Rows of consecutive positions.
  void fill_from(uint32_t first_position, uint32_t num_tokens);
  /// cos of pair 0, sin of pair 0, cos of pair 1, …
  const float* row(uint32_t token) const {
    return cos_sin_.data() + uint64_t{token} * rotary_dim_;
  }

 private:
  void fill_row(uint32_t row, uint32_t position);

  double theta_;
  uint32_t rotary_dim_;
  std::vector<double> frequencies_;  // [rotary_dim / 2]
  std::vector<float> cos_sin_;       // [max_tokens, rotary_dim / 2, 2]
};

/// What the ops of a draft need to know about the rows of an epoch.
struct DraftTables {
  DraftTables(const DraftConfig& config, const PlanOptions& options);

  RopeTable context_rope;              ///< row r: position context_begin + r
  RopeTable block_rope;                ///< row t: position P + t
  std::vector<uint32_t> feature_rows;  ///< [max_context_rows] where in the ring of features r lies
};

/// A plan with the memory its steps run in.
struct PlanState {
  /// @param draft   of the model, or nullptr
  /// @param lender  whose buffers to use; nullptr: its own
  PlanState(const Plan& given, const ModelConfig& config, const DraftConfig* draft = nullptr,
            const PlanState* lender = nullptr);

  /// Fills the tables for the rows of the epoch that comes. Before a step, and at the end of each
  /// round.
  void fill_tables(const StepInput& input, const KvCache& cache);
  /// After rounds: sets `epoch` to the number of epochs that have run.
  void count_epochs();

  uint8_t* buffer(uint16_t buffer_id) const { return buffers[buffer_id]; }
  uint32_t stride(uint16_t buffer_id) const { return plan.buffers()[buffer_id].cols; }
  bf16_t* bf16_row(uint16_t buffer_id, uint32_t row) const {
    return reinterpret_cast<bf16_t*>(buffers[buffer_id]) + uint64_t{row} * stride(buffer_id);
  }
  float* f32_row(uint16_t buffer_id, uint32_t row) const {
    return reinterpret_cast<float*>(buffers[buffer_id]) + uint64_t{row} * stride(buffer_id);
  }
  /// What one of head_tasks keeps of its logits in a step that wants only tokens: [max_logit_rows].
  BestLogits* best_logits(const Task& task) const;

  Plan plan;  ///< a copy; its tasks are shared with the caller's
  AlignedBytes arena, logits;     ///< empty when they are another's
  std::vector<uint8_t*> buffers;  ///< nullptr for those outside arena and logits
  RouteTable route;               ///< view of the route buffer; all zero without MoE layers
  std::vector<RopeTable> ropes;
  std::vector<const RopeTable*> layer_ropes;  ///< [num_layers], nullptr: the layer does not rotate
  std::vector<const Task*> head_tasks;        ///< lm_head tasks that have tiles
  AlignedBytes best;                          ///< BestLogits [head_tasks, max_logit_rows]
  std::unique_ptr<DraftTables> draft;         ///< nullptr: the plan has no draft
  Counters counters;
  WorkStealing stealing;
  uint64_t epoch = 0;
};

/// The step that runs. Written by the caller before, read by all workers.
struct Step {
  PlanState* plan = nullptr;
  KvCache* cache = nullptr;
  const StepInput* input = nullptr;
  StepOutput* output = nullptr;
  uint64_t number = 0;  ///< of this executor, from 1
};

/// How much scratch a worker needs for any step of some plans.
struct ScratchSizes {
  ScratchSizes(const Weights& weights, const Kernels& kernels,
               const std::vector<std::unique_ptr<PlanState>>& plans,
               const DraftWeights* draft = nullptr);
  uint64_t normalised_bytes = 0, prepared_bytes = 0, result_bytes = 0, expert_sum_bytes = 0,
           attend_bytes = 0, select_bytes = 0;

 private:
  void add_matrix(const Kernels& kernels, const PackedMatrix& matrix);
  void add_draft(const DraftWeights& draft, const Kernels& kernels);
  void add_attention(const Kernels& kernels, uint32_t q_per_kv, uint32_t qk_head_dim,
                     uint32_t v_head_dim);

  uint32_t block_tokens_ = 1;
};

/// One worker's private memory and what every op needs.
class Worker {
 public:
  Worker(const Weights& weights, const Kernels& kernels, const ScratchSizes& sizes,
         const Step& step, const DraftWeights* draft = nullptr);
  /// Called on the worker's own thread, so that the memory lies near its core.
  void touch();
  /// Makes room for any attention over `cache`. Allocates only for a longer context than any
  /// before.
  void fit_segments(const KvCache& cache);
  void begin_epoch(uint64_t new_epoch);

  const Weights& weights;
  const DraftWeights* const draft;     ///< nullptr: none
  const ModelConfig& config;
  const Kernels& kernels;
  const Step& step;

  AlignedBytes normalised;             ///< rows of hidden_size, for ops that normalise themselves
  AlignedBytes prepared;               ///< activations of one block, as the kernels want them
  AlignedBytes results;                ///< kResultFloats
  AlignedBytes expert_sums;            ///< kExpertSumFloats
  AlignedBytes attend_scratch;
  AlignedBytes select_scratch;
  std::vector<KvSegment> segments;     ///< [cache.max_segments() + kMaxBlockSize]
  uint64_t num_active_experts = 0;     ///< of this step or these rounds, counted by select_experts
  std::vector<TaskTrace> trace;        ///< preallocated
  uint64_t epoch = 0;                  ///< that runs
  SharedPlace place;                   ///< of the task that runs

  struct NormKey {
    uint64_t step = 0;
    uint16_t layer_idx = 0;
    bool is_mlp = false;
    bool operator==(const NormKey&) const = default;
  };
  NormKey normalised_key;              ///< whose rows `normalised` holds
};

/// Runs one task. Never throws, allocates, locks or calls the system.
void run_task(const Task& task, Worker& worker);

/// Weights that the task reads first, for prefetching while it waits; {nullptr, nullptr}: not known
/// before its input. `before`: the worker's task before it, or nullptr. The route of a layer is known
/// to whoever has just run an expert_gate_up of it, and stays until all expert_down are done.
struct ByteRange {
  const uint8_t* begin = nullptr;
  const uint8_t* end = nullptr;
};
ByteRange first_weights(const Task& task, const Task* before, const Worker& worker);

}  // namespace mimo_rt::cpu
