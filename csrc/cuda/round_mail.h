// The host's end of the mailbox through which a launch of rounds tells what it has done.
#pragma once

#include <memory>

#include "cuda/device_buffer.h"
#include "cuda/round_params.h"
#include "engine/round.h"

namespace mimo_rt::cuda {

/// One launch at a time.
class RoundMail {
 public:
  explicit RoundMail(std::shared_ptr<StepDevice> device)
      : memory_(std::move(device), sizeof(RoundMailbox), DeviceBuffer::Place::pinned) {}

  RoundMailbox* mailbox() const { return reinterpret_cast<RoundMailbox*>(memory_.data()); }
  /// Of the next round that is read or launched.
  uint32_t next_number() const { return next_number_; }

  /// Says how many drafts rounds should verify that nobody has begun yet, or that there should be no
  /// further round when `rounds` are asked to stop.
  void tell(const RoundState& rounds, uint32_t block_size) const;
  /// Says that there should be no further round.
  void stop() const { put(RoundMailbox::kStop); }
  /// The next round, or nullptr while it has not ended. Valid until kMaxLaunchRounds later ones have.
  const RoundRecord* read();

 private:
  void put(uint32_t max_drafts) const;

  const DeviceBuffer memory_;
  uint32_t next_number_ = 1;  ///< memory begins as zeros
};

/// Lets `rounds` do what `record` says. `logits`: see RoundReport.
/// @throws Error{internal} for a record that makes no sense, or when the device and `rounds` disagree
///         on whether the text goes on
void apply_record(RoundState& rounds, const RoundRecord& record, const float* logits,
                  uint32_t stride);

}  // namespace mimo_rt::cuda
