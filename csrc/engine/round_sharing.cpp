#include "engine/round_sharing.h"

namespace mimo_rt {

bool RoundSharing::shares(uint32_t num_sharing, double alone_per_ns, double step_ns) {
  if (alone_per_ns == 0.0) return false;
  if (step_ns == 0.0) return true;
  const bool pays = num_sharing >= alone_per_ns * step_ns;
  if (pays != has_paid_) num_alike_ = 0;
  has_paid_ = pays;
  num_alike_ = (num_alike_ + 1) % (kAlikeInARow + (pays ? kProbesAlone : kProbesShared));
  return num_alike_ < kAlikeInARow ? pays : !pays;
}

}  // namespace mimo_rt
