#include "engine/draft_confidence.h"

#include <algorithm>

namespace mimo_rt {
namespace {

// Lower ends of bins, in nat, and what is believed of a bin before anything is known: the logistic function near its
// middle, as if the two best tokens were all there is.
constexpr float kBegin[] = {0.0f, 0.125f, 0.25f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.5f};
constexpr double kPrior[] = {0.4, 0.5, 0.55, 0.6, 0.68, 0.78, 0.85, 0.92, 0.97, 0.99};
constexpr double kPriorWeight = 3.0;  // drafts

}  // namespace

uint32_t DraftConfidence::bin_of(float lead) {
  static_assert(std::size(kBegin) + 1 == kNumBins && std::size(kPrior) == kNumBins);
  if (!(lead > 0.0f)) return 0;
  return static_cast<uint32_t>(std::upper_bound(std::begin(kBegin), std::end(kBegin), lead) - std::begin(kBegin));
}

double DraftConfidence::acceptance(float lead) const {
  const uint32_t bin = bin_of(lead);
  return (accepted_[bin] + kPriorWeight * kPrior[bin]) / (tried_[bin] + kPriorWeight);
}

void DraftConfidence::observe(float lead, bool is_accepted) {
  const uint32_t bin = bin_of(lead);
  accepted_[bin] += is_accepted;
  tried_[bin] += 1.0;
}

void DraftConfidence::decay(double factor) {
  for (double& count : accepted_) count *= factor;
  for (double& count : tried_) count *= factor;
}

}  // namespace mimo_rt
