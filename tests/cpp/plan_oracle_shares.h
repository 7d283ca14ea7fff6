// Shares of a task that count each other (plan/task.h: sample, accept) on plan_oracle.h's machine.
#pragma once

#include <cstdint>
#include <optional>

namespace plan_oracle {

class JointShares {
 public:
  /// A share has read what hashes to `hash`. @return for the last of `num_shares` what all have read, which is nothing
  /// that any right plan reads unless it was the same for all
  std::optional<uint64_t> arrive(uint64_t hash, uint32_t num_shares) {
    if (num_arrived_++ == 0) hash_ = hash;
    else if (hash_ != hash) hash_ = ~hash;
    if (num_arrived_ != num_shares) return std::nullopt;
    num_arrived_ = 0;
    return hash_;
  }

 private:
  uint32_t num_arrived_ = 0;
  uint64_t hash_ = 0;
};

}  // namespace plan_oracle
