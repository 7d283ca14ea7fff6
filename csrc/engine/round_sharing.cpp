#include "engine/round_sharing.h"

namespace mimo_rt {

bool RoundSharing::shares(uint32_t num_decoding, double alone_per_ns, double step_ns) {
  if (alone_per_ns == 0.0) return false;
  if (step_ns == 0.0) return true;
  if (num_decoding < alone_per_ns * step_ns) {
    num_shared_ = 0;
    return false;
  }
  num_shared_ = (num_shared_ + 1) % (kSharedInARow + kProbes);
  return num_shared_ < kSharedInARow;
}

}  // namespace mimo_rt
