// From a task of a plan to what the persistent kernel's roles are given for it.
#pragma once

#include <mimo_rt/config.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "cuda/persistent_params.h"
#include "cuda/step_layout.h"
#include "plan/buffers.h"

namespace mimo_rt::cuda {

/// Where things are on the device.
struct DeviceAddresses {
  const uint8_t* weights = nullptr;  ///< CudaWeights::image()
  const uint8_t* draft = nullptr;    ///< CudaDraftWeights::image()
  uint8_t* kv = nullptr;             ///< KvLayout::bytes()
  uint8_t* step = nullptr;           ///< StepLayout::bytes
};

template <typename Params>
TaskOperands pack_operands(TaskBody body, const Params& params, RowCount row_count,
                           size_t row_count_at) {
  static_assert(std::is_trivially_copyable_v<Params> && sizeof(Params) <= TaskOperands::kBytes);
  TaskOperands operands{};
  std::memcpy(operands.params, &params, sizeof params);
  operands.body = body;
  operands.row_count = row_count;
  operands.row_count_at = static_cast<uint32_t>(row_count_at);
  return operands;
}

/// Makes operands; everything it is given must outlive it.
class OperandMaker {
 public:
  OperandMaker(const Plan& plan, const ModelConfig& config, const CudaWeights& weights,
               const CudaDraftWeights* draft, const KvLayout& kv, const StepLayout& layout,
               const DeviceAddresses& device)
      : plan_(plan), config_(config), weights_(weights), draft_(draft), kv_(kv), layout_(layout),
        device_(device) {}

  /// @throws Error{unsupported_shape, capacity} for sizes that a kernel does not take
  TaskOperands make(const Task& task) const;

 private:
  TaskOperands embed() const;
  TaskOperands rms_norm(const Task& task) const;
  TaskOperands qkv_proj(const Task& task) const;
  TaskOperands attention(const Task& task) const;
  TaskOperands add_to_residual(const Task& task, const CudaDenseMatrix& matrix) const;
  TaskOperands gate_up_proj(const Task& task) const;
  TaskOperands lm_head(const Task& task) const;
  TaskOperands router(const Task& task) const;
  TaskOperands select_experts(const Task& task) const;
  TaskOperands expert_gate_up(const Task& task) const;
  TaskOperands expert_down(const Task& task) const;
  TaskOperands sample() const;
  TaskOperands accept() const;
  CaptureOutput capture(const Task& task) const;

  // draft_operands.cpp
  TaskOperands make_draft(const Task& task) const;
  TaskOperands context_fc(const Task& task) const;
  TaskOperands context_norm(const Task& task) const;
  TaskOperands heads(const Task& task) const;
  TaskOperands draft_embed() const;
  TaskOperands draft_norm(const Task& task) const;
  TaskOperands draft_attention(const Task& task) const;
  TaskOperands draft_add_to_residual(const Task& task, const CudaDenseMatrix& matrix) const;
  TaskOperands draft_gate_up_proj(const Task& task) const;
  TaskOperands draft_lm_head(const Task& task) const;
  TaskOperands draft_sample() const;
  ProjectionParams draft_projection(const Task& task, const CudaDenseMatrix& matrix,
                                    uint32_t num_rows) const;
  RmsNormParams draft_rms_norm(const Task& task, uint64_t weight, uint32_t num_rows) const;

  ProjectionParams projection(const Task& task, const CudaDenseMatrix& matrix) const;
  template <typename T>
  RowsView<T> rows(uint16_t buffer_id) const {
    const BufferInfo& info = plan_.buffers()[buffer_id];
    const uint64_t begin = buffer_id == kLogits ? layout_.logits : layout_.arena + info.offset;
    return {step<T>(begin), info.cols};
  }
  /// The plan's buffer, but for the number of active experts, which each layer keeps.
  RouteTable route(uint32_t layer_idx) const;
  /// The tag edge by which it comes; without rows: it is in memory.
  RouteEdge route_edge(uint32_t layer_idx) const;
  /// What both expert kernels are told of the tokens and their routes.
  template <typename Params>
  void set_route(const Task& task, Params& p) const;
  const uint8_t* weight(uint64_t offset) const { return device_.weights + offset; }
  const float* floats(uint64_t offset) const {
    return reinterpret_cast<const float*>(weight(offset));
  }
  const uint8_t* draft_weight(uint64_t offset) const { return device_.draft + offset; }
  const float* draft_floats(uint64_t offset) const {
    return reinterpret_cast<const float*>(draft_weight(offset));
  }
  template <typename T>
  T* step(uint64_t offset) const {
    return reinterpret_cast<T*>(device_.step + offset);
  }
  /// Parts of sums over a dimension that ranks share (DESIGN D5: 8 over all ranks).
  uint32_t num_segments() const { return std::max(8 / weights_.rank().count, 1u); }

  const Plan& plan_;
  const ModelConfig& config_;
  const CudaWeights& weights_;
  const CudaDraftWeights* const draft_;  ///< nullptr: none
  const KvLayout& kv_;
  const StepLayout& layout_;
  const DeviceAddresses device_;
};

}  // namespace mimo_rt::cuda
