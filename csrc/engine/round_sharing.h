// Whether a session with a draft model runs its next round alone, with drafts, or as a token in a step that others share.
//
// Rounds with drafts bring more tokens per pass over the weights, shared steps bring a token to every session. What brings
// more to all together is known from measured times: n sessions that take turns with their rounds get tokens as fast as one
// of them alone; in a shared step they get n at once. Pure bookkeeping: times come from the caller.
#pragma once

#include <cstdint>

namespace mimo_rt {

class RoundSharing {
 public:
  /// Of `num_sharing` sessions, more than one. `alone_per_ns`: tokens of this session's own rounds per ns, `step_ns`: of a
  /// step with a token of each; 0: not known, which is found out first.
  bool shares(uint32_t num_sharing, double alone_per_ns, double step_ns);

 private:
  static constexpr uint32_t kAlikeInARow = 256;  ///< then texts may have become others, and so may acceptance and times
  static constexpr uint32_t kProbesAlone = 4;    ///< rounds alone by which that is seen
  static constexpr uint32_t kProbesShared = 1;   ///< steps: a single one may say that those before were interrupted

  bool has_paid_ = false;    ///< whether shared steps brought more the last time
  uint32_t num_alike_ = 0;   ///< since that changed, or since the last probes began
};

}  // namespace mimo_rt
