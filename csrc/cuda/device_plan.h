// A plan as the persistent kernel runs it: the plan's own task words and counters, with operands
// that say what buffer ids and layers mean on the device.
#pragma once

#include <mimo_rt/config.h>

#include <cstdint>
#include <vector>

#include "cuda/device_operands.h"
#include "cuda/persistent_params.h"
#include "cuda/step_layout.h"

namespace mimo_rt::cuda {

/// Whether the kernels take the model's sizes, before there is a cache.
/// @throws Error{unsupported_shape, capacity} as DevicePlan::image
void check_operands(const Plan& plan, const ModelConfig& config, const CudaWeights& weights,
                    const CudaDraftWeights* draft);

/// Made once per plan, for which all else must outlive it. `draft`: that of a plan with one, or nullptr.
class DevicePlan {
 public:
  /// @throws Error{unsupported_shape} for plans that the kernel does not run
  DevicePlan(const Plan& plan, const ModelConfig& config, const CudaWeights& weights,
             const CudaDraftWeights* draft, const KvLayout& kv);

  const Plan& plan() const { return plan_; }
  const StepLayout& layout() const { return layout_; }
  /// The step block as it must be before the first step, [layout().image_bytes]: counters are zero.
  /// @throws Error{unsupported_shape, capacity} for sizes that a kernel does not take
  std::vector<uint8_t> image(const DeviceAddresses& device) const;
  /// What the kernel is given for epoch `epoch` of this block. The watchdog's report is the caller's.
  PersistentParams params(const DeviceAddresses& device, uint32_t epoch) const;
  /// StepTables for a step with these numbers of rows; the caller copies them to layout().tables.
  /// @throws Error{invalid_argument} for more rows than the plan has
  StepTables tables(const DeviceAddresses& device, uint32_t num_tokens, uint32_t num_logit_rows,
                    bool samples) const;
  /// A row of layout().sample_rows, but for what the request says: rules and masked ids.
  SampleParams sample_row(const DeviceAddresses& device, uint32_t row) const;
  /// What layout().round begins with, but for what the generation asks and where it stands. Of a round's plan.
  RoundTables round(const DeviceAddresses& device) const;
  /// layout().draft.sample of a round, but for what the request says.
  SampleParams draft_sample(const DeviceAddresses& device) const;

 private:
  SampledRows sampled_rows(const DeviceAddresses& device) const;
  void write_rotary(const DeviceAddresses& device, uint8_t* image) const;
  void write_draft(const DeviceAddresses& device, uint8_t* image) const;

  const Plan& plan_;
  const ModelConfig& config_;
  const CudaWeights& weights_;
  const CudaDraftWeights* const draft_;
  const KvLayout& kv_;
  StepLayout layout_;
};

}  // namespace mimo_rt::cuda
