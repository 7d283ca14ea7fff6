// The weights of a row of logits, a block at a time: what is summed up and drawn from when no filter needs candidates.
#pragma once

#include "sampling/arithmetic.h"
#include "sampling/exp_block.h"
#include "sampling/sampler.h"

namespace mimo_rt {

class WeightBlocks {
 public:
  /// The row, the request and what they refer to must outlive this object.
  WeightBlocks(const LogitRow& row, const SampleRequest& request, const WeightScale& scale);

  uint32_t num_blocks() const { return (row_.size + kExpBlock - 1) / kExpBlock; }
  /// weights[i]: of logit block * kExpBlock + i, 0 for what is no candidate. Returns their sum.
  uint64_t weigh(uint32_t block, uint64_t (&weights)[kExpBlock]) const;
  uint64_t total() const;

 private:
  void correct_exponents(uint32_t begin, uint32_t end, double* exponents) const;
  template <typename Entry, typename IdOf, typename Visit>
  void for_each_listed(const Entry* entry, const Entry* last, uint32_t begin, uint32_t end, IdOf id_of,
                       Visit visit) const;

  const LogitRow& row_;
  const SampleRequest& request_;
  const WeightScale scale_;
  const uint32_t* counts_;  ///< nullptr without a penalty
};

/// The token that `uniform_bits` point to among all candidates, in the order of token ids.
int32_t draw_unfiltered(const LogitRow& row, const SampleRequest& request, const WeightScale& scale,
                        uint64_t uniform_bits);

}  // namespace mimo_rt
