// Speculative sampling: a token proposed by a draft distribution q becomes one that is distributed exactly as the
// target's p (Leviathan et al., arXiv 2211.17192): accept d with probability min(1, p(d) / q(d)), else draw from
// max(p - q, 0) normalised. p and q are what the request's filters leave of each model's logits; q is 0 where a draft has
// no logit.
//
// All decisions are made in integers, so equal logits give equal tokens on every backend. Uniform numbers: a stream of
// its own per use and per row of the block. As rows never return to an earlier position, no number is used twice, not
// even when a position is drafted again after a rejection before it.
#pragma once

#include "sampling/candidate_set.h"

namespace mimo_rt {

/// A drafted token and the distribution it was drawn from, in the scratch of the request that drew it.
struct Proposal {
  int32_t token_id = 0;
  CandidateSet candidates;  ///< in the order of ids
  uint64_t total = 0;       ///< weight
};

/// Draws the draft of row `row` >= 1 of a block. Logits without any finite value propose token 0.
Proposal draw_draft(const LogitRow& draft_logits, const SampleRequest& request, uint32_t row);

/// Draws the target's token where `proposal` is the draft; result.token_id -1 as in sample_token. `request` is the
/// target's (other scratch, counts up to date). Returns whether the draft was accepted.
bool verify_draft(const LogitRow& logits, const SampleRequest& request, uint32_t row, const Proposal& proposal,
                  SampleResult& result);

}  // namespace mimo_rt
