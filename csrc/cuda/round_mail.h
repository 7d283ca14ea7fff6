// The host's end of the mailbox through which a launch of rounds tells what it has done, and hears
// what it may do.
#pragma once

#include <memory>

#include "cuda/device_buffer.h"
#include "cuda/round_params.h"
#include "engine/round.h"

namespace mimo_rt::cuda {

/// One launch at a time.
class RoundMail {
 public:
  /// `idle_ns`: see RoundMailbox.
  RoundMail(std::shared_ptr<StepDevice> device, uint64_t idle_ns);

  RoundMailbox* mailbox() const { return reinterpret_cast<RoundMailbox*>(memory_.data()); }
  /// Of the next round that is read or launched.
  uint32_t next_number() const { return next_number_; }

  /// So many rounds may run from now on. `tell` says so to the launch.
  void grant(uint32_t num_rounds) { last_number_ = next_number_ + num_rounds - 1; }
  /// Says which rounds may run and how many drafts those should verify that nobody has begun yet, or
  /// that there should be no further round when `rounds` have ended or are asked to stop.
  void tell(const RoundState& rounds) const;
  /// Says that there should be no further round.
  void stop() const { put(RoundOrder::stop()); }
  bool has_next() const;
  /// The next round, or nullptr while it has not ended. Valid until kMaxLaunchRounds later ones have.
  /// @throws Error{internal} for a round that was not granted
  const RoundRecord* read();

 private:
  void put(RoundOrder order) const;
  RoundRecord& next_record() const;

  const DeviceBuffer memory_;
  uint32_t next_number_ = 1;  ///< memory begins as zeros
  uint32_t last_number_ = 0;  ///< of the rounds that may run
};

/// Lets `rounds` do what `record` says. `logits`: see RoundReport.
/// @throws Error{internal} for a record that makes no sense, or when the device and `rounds` disagree
///         on whether the text goes on
void apply_record(RoundState& rounds, const RoundRecord& record, const float* logits,
                  uint32_t stride);

}  // namespace mimo_rt::cuda
