// Brings what a step or a launch of rounds is given to the device: its tables and rows to the step
// block, lists of any length (masked ids, biases, counts, text) beside it.
#pragma once

#include <cstring>
#include <memory>
#include <span>

#include "cuda/device_cache.h"
#include "engine/round.h"
#include "engine/step.h"

namespace mimo_rt::cuda {

class StepInputs {
 public:
  explicit StepInputs(std::shared_ptr<StepDevice> device) : device_(std::move(device)) {}

  /// Makes room. @throws Error{out_of_memory}: nothing was sent
  void reserve(const StepBlock& block, const StepInput& input);
  void reserve(const StepBlock& block, const RoundState& rounds);
  /// Sends it, checked and reserved: on its way until StepDevice::wait. `sequences`: of every row.
  void send(const StepBlock& block, const StepInput& input, std::span<const KvSequence> sequences);
  /// Likewise for rounds of a sequence, that begin as `rounds` says, but for how many drafts they verify at most:
  /// that says the mailbox, of lookups in the rounds after the first. The first round has number `first_number`.
  void send(const StepBlock& block, const RoundState& rounds, const KvSequence& sequence, RoundMailbox* mailbox,
            uint32_t first_number);

 private:
  static constexpr uint64_t kListAlignment = 16;

  static uint64_t aligned(uint64_t bytes) {
    return (bytes + kListAlignment - 1) / kListAlignment * kListAlignment;
  }
  static uint64_t list_bytes(const SampleRequest& request, uint32_t vocab_size);
  void reserve_lists(const StepBlock& block, uint64_t num_bytes);
  SamplingRules put_rules(const StepBlock& block, const SampleRequest& request);
  void put_draft(const StepBlock& block, const RoundState& rounds, RoundTables& round);
  void put_context(const StepBlock& block, const StepTables& tables);
  void put_sample_row(const StepBlock& block, const StepInput& input, uint32_t row);
  void send_all(const StepBlock& block);

  template <typename T>
  void put(const StepBlock& block, uint64_t offset, const T* values, size_t count) {
    if (count == 0) return;
    std::memcpy(staging_.data() + (offset - block.plan.layout().tables), values, count * sizeof(T));
  }
  /// @return where the list will be on the device
  template <typename T>
  T* put_list(const T* values, size_t count) {
    if (count == 0) return nullptr;
    std::memcpy(staging_.data() + lists_end_, values, count * sizeof(T));
    uint8_t* begin = lists_.data() + (lists_end_ - lists_begin_);
    lists_end_ += aligned(count * sizeof(T));
    return reinterpret_cast<T*>(begin);
  }

  const std::shared_ptr<StepDevice> device_;
  DeviceBuffer staging_;  ///< pinned: the block's inputs, then the lists
  DeviceBuffer lists_;
  uint64_t lists_begin_ = 0, lists_end_ = 0;  ///< of the launch at hand, in `staging_`
};

}  // namespace mimo_rt::cuda
