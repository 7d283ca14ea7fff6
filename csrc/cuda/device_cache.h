// What the GPU holds of a model, and what it holds of one KvCache: keys and values, and for each plan
// the block that its steps work in.
#pragma once

#include <mimo_rt/config.h>
#include <mimo_rt/plan.h>

#include <memory>
#include <optional>
#include <vector>

#include "cuda/device_buffer.h"
#include "cuda/device_plan.h"
#include "kv/kv_cache.h"

namespace mimo_rt::cuda {

/// Shared by the executor and by the caches that it has made.
struct DeviceModel {
  std::shared_ptr<StepDevice> device;
  ModelConfig config;
  std::vector<Plan> plans;
  CudaWeights weights;   ///< where things are; the bytes themselves are on the device
  DeviceBuffer memory;   ///< CudaWeights::image()
  std::optional<CudaDraftWeights> draft = {};
  DeviceBuffer draft_memory = {};  ///< CudaDraftWeights::image()

  const CudaDraftWeights* draft_weights() const { return draft ? &*draft : nullptr; }
  const DraftConfig* draft_config() const { return draft ? &draft->config() : nullptr; }
};

/// The memory that steps of one plan work in, and where they stand. Addresses are part of it, so it
/// belongs to one cache.
struct StepBlock {
  DevicePlan plan;
  DeviceBuffer memory{};        ///< StepLayout::bytes
  DeviceAddresses addresses{};
  uint32_t epoch = 0;           ///< steps that have run
};

class DeviceCache final : public KvStore {
 public:
  /// @throws Error{out_of_memory} that says how much is missing; Error{unsupported_shape, capacity}
  DeviceCache(std::shared_ptr<const DeviceModel> model, const KvCache& cache);

  uint64_t bytes() const override { return layout_.bytes(); }
  const std::shared_ptr<const DeviceModel>& model() const { return model_; }
  StepBlock& block(size_t plan_idx) { return *blocks_[plan_idx]; }
  const KvLayout& layout() const { return layout_; }
  KvSequence sequence(uint32_t seq_idx) const { return layout_.sequence(seq_idx, memory_.data()); }

 private:
  const std::shared_ptr<const DeviceModel> model_;
  const KvLayout layout_;
  DeviceBuffer memory_;
  std::vector<std::unique_ptr<StepBlock>> blocks_;  ///< of each plan
};

}  // namespace mimo_rt::cuda
