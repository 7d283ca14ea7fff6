// How likely the target confirms a draft, from how far the draft's best logit leads its second. Learnt from what became
// of earlier drafts with about the same lead, whatever their place in the block.
#pragma once

#include <array>
#include <cstdint>

namespace mimo_rt {

class DraftConfidence {
 public:
  /// Given that all drafts before it are confirmed. `lead` in nat; not above 0 or NaN: the draft is not the best logit.
  double acceptance(float lead) const;
  void observe(float lead, bool is_accepted);
  /// Weighs all that was seen by `factor`.
  void decay(double factor);

 private:
  static constexpr uint32_t kNumBins = 10;
  static uint32_t bin_of(float lead);

  std::array<double, kNumBins> accepted_{}, tried_{};
};

}  // namespace mimo_rt
