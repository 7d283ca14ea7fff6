// How likely the target confirms a draft, from a score that is known before: how far the draft's best logit leads its
// second, or how many tokens matched before it. Learnt from what became of earlier drafts with about the same score,
// whatever their place in the block.
#pragma once

#include <array>
#include <cstdint>

namespace mimo_rt {

/// Where drafts come from, and what their score is.
enum class DraftSource : uint8_t {
  model,         ///< nat; not above 0 or NaN: the draft is not the best logit
  ngram_lookup,  ///< tokens: the match and the drafts before this one
};

class DraftConfidence {
 public:
  explicit DraftConfidence(DraftSource source);

  /// Given that all drafts before it are confirmed.
  double acceptance(float score) const;
  void observe(float score, bool is_accepted);
  /// Weighs all that was seen by `factor`.
  void decay(double factor);

 private:
  static constexpr uint32_t kMaxBins = 10;
  struct Bins;
  static const Bins kOfModel, kOfLookup;
  uint32_t bin_of(float score) const;

  const Bins* bins_;
  std::array<double, kMaxBins> accepted_{}, tried_{};
};

}  // namespace mimo_rt
