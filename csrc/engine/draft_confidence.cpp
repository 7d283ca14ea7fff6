#include "engine/draft_confidence.h"

#include <algorithm>
#include <limits>

namespace mimo_rt {

namespace {
constexpr double kPriorWeight = 3.0;  // drafts
constexpr float kNever = std::numeric_limits<float>::infinity();
}  // namespace

/// Lower ends of all bins but the first, and what is believed of a bin before anything is known.
struct DraftConfidence::Bins {
  std::array<float, kMaxBins - 1> begin;
  std::array<double, kMaxBins> prior;
};

/// Of leads: the logistic function near the middle of the bin, as if the two best tokens were all there is.
constexpr DraftConfidence::Bins DraftConfidence::kOfModel{
    .begin = {0.0f, 0.125f, 0.25f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.5f},
    .prior = {0.4, 0.5, 0.55, 0.6, 0.68, 0.78, 0.85, 0.92, 0.97, 0.99}};

/// Of matches: as often as they were right in 300 greedy answers of bench/prompts/demo_answers.tar.xz.
constexpr DraftConfidence::Bins DraftConfidence::kOfLookup{
    .begin = {2.0f, 3.0f, 4.0f, 5.0f, 7.0f, 10.0f, 16.0f, kNever, kNever},
    .prior = {0.24, 0.58, 0.63, 0.70, 0.80, 0.85, 0.89, 0.98, 0.98, 0.98}};

DraftConfidence::DraftConfidence(DraftSource source)
    : bins_(source == DraftSource::model ? &kOfModel : &kOfLookup) {}

uint32_t DraftConfidence::bin_of(float score) const {
  if (!(score > 0.0f)) return 0;
  const auto& begin = bins_->begin;
  return static_cast<uint32_t>(std::upper_bound(begin.begin(), begin.end(), score) - begin.begin());
}

double DraftConfidence::acceptance(float score) const {
  const uint32_t bin = bin_of(score);
  return (accepted_[bin] + kPriorWeight * bins_->prior[bin]) / (tried_[bin] + kPriorWeight);
}

void DraftConfidence::observe(float score, bool is_accepted) {
  const uint32_t bin = bin_of(score);
  accepted_[bin] += is_accepted;
  tried_[bin] += 1.0;
}

void DraftConfidence::decay(double factor) {
  for (double& count : accepted_) count *= factor;
  for (double& count : tried_) count *= factor;
}

}  // namespace mimo_rt
