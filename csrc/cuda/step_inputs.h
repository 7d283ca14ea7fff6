// Brings what a step is given to the device: its tables and rows to the step block, lists of any
// length (masked ids, biases, counts) beside it.
#pragma once

#include <memory>

#include "cuda/device_cache.h"
#include "engine/step.h"

namespace mimo_rt::cuda {

class StepInputs {
 public:
  explicit StepInputs(std::shared_ptr<StepDevice> device) : device_(std::move(device)) {}

  /// Makes room for a step. @throws Error{out_of_memory}: nothing was sent
  void reserve(const StepBlock& block, const StepInput& input);
  /// Sends it, checked and reserved: on its way until StepDevice::wait.
  void send(const StepBlock& block, const StepInput& input);

 private:
  void put_sample_row(const StepBlock& block, const StepInput& input, uint32_t row);
  template <typename T>
  void put(const StepBlock& block, uint64_t offset, const T* values, size_t count);
  template <typename T>
  const T* put_list(const T* values, size_t count);

  const std::shared_ptr<StepDevice> device_;
  DeviceBuffer staging_;  ///< pinned: the block's inputs, then the lists
  DeviceBuffer lists_;
  uint64_t lists_begin_ = 0, lists_end_ = 0;  ///< of the step at hand, in `staging_`
};

}  // namespace mimo_rt::cuda
