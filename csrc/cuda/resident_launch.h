// The launch of rounds that is on the device, and whom it waits for.
//
// A caller that wants its turn after every round (RoundState::comes_back) does not end the launch with it:
// the launch waits on the device until it is told that the next round may run, or to leave, or until it has
// waited too long and leaves by itself (RoundMailbox). Meanwhile the executor is free: who wants the device
// for anything else tells the launch to leave first, which takes microseconds, and whoever comes back to a
// launch that has left begins another one. Nothing is lost: between two rounds the host's state is the
// device's, and the launch has not begun anything of the round that it waits for.
#pragma once

#include <cstdint>

#include "cuda/device_cache.h"
#include "engine/round.h"

namespace mimo_rt::cuda {

class ResidentLaunch {
 public:
  /// A launch of at most `num_rounds`, of which the first `num_granted` run at once.
  void begin(const StepBlock& block, RoundState& rounds, uint32_t num_rounds, uint32_t num_granted) {
    plan_ = &block.plan.plan();
    rounds.launch_id = ++last_id_;
    num_left_ = num_rounds;
    num_due_ = num_granted;
  }
  void count_round() {
    --num_left_;
    num_due_ -= num_due_ != 0;
  }
  /// Rounds that the launch has not run yet.
  uint32_t num_left() const { return num_left_; }
  /// Of those that it was begun with.
  uint32_t num_due() const { return num_due_; }

  /// It has run all that it may, and waits for more rounds of `rounds`.
  void wait_for(const StepBlock& block, const RoundState& rounds) {
    awaited_ = place_of(block, rounds);
    is_waiting_ = true;
  }
  /// Whether it waits, or has waited until it left, for just these rounds.
  bool waits_for(const StepBlock& block, const RoundState& rounds) const {
    return is_waiting_ && awaited_ == place_of(block, rounds);
  }
  bool is_waiting() const { return is_waiting_; }
  void stop_waiting() { is_waiting_ = false; }
  /// Of the last launch.
  const Plan& plan() const { return *plan_; }

 private:
  /// Whose rounds, and where they stand.
  struct Place {
    uint64_t launch_id = 0;
    const StepBlock* block = nullptr;
    uint64_t num_output = 0;
    uint32_t position = 0, num_context = 0;
    int32_t anchor = 0;
    bool operator==(const Place&) const = default;
  };
  static Place place_of(const StepBlock& block, const RoundState& rounds) {
    return {rounds.launch_id, &block, rounds.num_output, rounds.position, rounds.num_context, rounds.block[0]};
  }

  const Plan* plan_ = nullptr;
  Place awaited_;
  uint64_t last_id_ = 0;
  uint32_t num_left_ = 0, num_due_ = 0;
  bool is_waiting_ = false;
};

}  // namespace mimo_rt::cuda
