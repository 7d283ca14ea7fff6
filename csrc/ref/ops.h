// The ops of the reference executor: plain loops, sums in float64, one rounding where a result is
// stored.
#pragma once

#include "core/activations.h"
#include "engine/step.h"
#include "plan/task.h"
#include "ref/storage.h"

#include <cstdint>
#include <functional>
#include <vector>

namespace mimo_rt::ref {

/// What a step's ops share. The pointers live as long as the step.
struct Step {
  const Plan* plan = nullptr;
  Buffers* buffers = nullptr;
  KeyValues* kv = nullptr;
  const StepInput* input = nullptr;
  StepOutput* output = nullptr;
  const float* draft_logits = nullptr;  ///< FP32 view of the buffer
};

/// Runs tasks one at a time; keeps the routing weights of the current layer unrounded for the exact
/// mode.
class Ops {
 public:
  /// @param draft  of the model, or nullptr
  Ops(const Weights& weights, bool exact, const DraftWeights* draft = nullptr,
      Activations activations = Activations::bf16)
      : weights_(weights),
        config_(weights.config()),
        draft_(draft),
        exact_(exact),
        activations_(activations) {}

  void run(const Task& task, const Step& step);

 private:
  using Rows = std::vector<double>;  // [num_rows, k], k: padded length of the matrix that reads

  // ops_rows.cpp
  void embed(const Task& task, const Step& step);
  void rms_norm(const Task& task, const Step& step);
  void normalise(const Step& step, uint16_t buffer, uint32_t row, const float* weight, double eps,
                 double* out) const;
  void normalise_rows(const Task& task, const Step& step, uint32_t num_rows, const float* weight,
                      double eps) const;
  void sample(const Task& task, const Step& step);
  Rows consumer_rows(const Task& task, const Step& step, const uint32_t* row_ids, uint32_t num_rows,
                     uint32_t k) const;
  double round_activation(double value) const;

  // ops_attention.cpp
  void qkv_proj(const Task& task, const Step& step);
  void attention(const Task& task, const Step& step);
  void store_qkv(const Task& task, const Step& step, const QkvTile& tile, uint32_t token,
                 const double* y) const;
  void attend(const Task& task, const Step& step, uint32_t token, uint32_t q_head);
  /// What a query sees: `num_keys` keys and values, and a sink logit or nullptr.
  struct Visible {
    uint32_t num_keys;
    std::function<void(uint32_t key, double* k)> read_k;
    std::function<void(uint32_t key, double* v)> read_v;
    const float* sink_logit;
  };
  /// Replaces `out` by the attention of one query.
  static void attend_to(const Visible& visible, const Rows& q, Rows& out);

  // ops_mlp.cpp
  using Epilogue = std::function<void(uint32_t tile, uint32_t row, const double* y)>;
  /// y = 16 results of row group `group` for every one of the rows.
  void project(const PackedMatrix& matrix, uint32_t group, const Rows& rows, uint32_t num_rows,
               Rows& y);
  void for_each_tile(const Task& task, const PackedMatrix& matrix, const Rows& rows,
                     uint32_t num_rows, const Epilogue& epilogue);
  void add_to_residual(const Task& task, const Step& step, uint32_t row, uint32_t col,
                       double delta) const;
  void output_proj(const Task& task, const Step& step, const PackedMatrix& matrix, uint32_t width,
                   uint32_t num_rows);
  void logits(const Task& task, const Step& step, const PackedMatrix& matrix);
  void gate_up(const Task& task, const Step& step, const PackedMatrix& matrix, uint32_t pair,
               const Rows& rows, uint32_t first_row, uint32_t num_rows, uint32_t width);
  void gate_up_proj(const Task& task, const Step& step);
  void expert_gate_up(const Task& task, const Step& step);
  void expert_down(const Task& task, const Step& step);
  void select_experts(const Task& task, const Step& step);

  // ops_draft.cpp
  struct Head;
  void run_draft(const Task& task, const Step& step);
  Head head_at(uint32_t row) const;
  Rows draft_consumer_rows(const Task& task, const Step& step, uint32_t first_row,
                           uint32_t num_rows, uint32_t k) const;
  void draft_norm(const Task& task, const Step& step);
  Rows project_head(const PackedMatrix& matrix, const Head& head, const Rows& rows,
                    uint32_t num_rows);
  void finish_head(const Head& head, const DraftLayerWeights& layer, uint32_t pos,
                   double* values) const;
  void context_fc(const Task& task, const Step& step);
  void context_kv(const Task& task, const Step& step);
  void draft_embed(const Task& task, const Step& step);
  void draft_qkv_proj(const Task& task, const Step& step);
  void draft_attention(const Task& task, const Step& step);
  void draft_gate_up_proj(const Task& task, const Step& step);
  void draft_lm_head(const Task& task, const Step& step);
  void draft_sample(const Task& task, const Step& step);

  const Weights& weights_;
  const ModelConfig& config_;
  const DraftWeights* const draft_;
  bool exact_;
  Activations activations_;
  std::vector<double> slot_weights_;    // [slots], of the layer routed last
  std::vector<double> unpacked_;        // one row group
  std::vector<double> gate_, up_;       // [num_rows, 16]
};

}  // namespace mimo_rt::ref
