#include "sampling/speculative.h"

namespace mimo_rt {
namespace {

uint64_t uniform_for(const SampleRequest& request, uint32_t row, DrawUse use) {
  return uniform_bits_at(request.params->seed, request.sequence_id, request.position, draw_stream(row, use));
}

uint64_t weight_of(const CandidateSet& set, int32_t token_id) {
  const Candidate* c = std::find_if(set.first, set.last, [token_id](const Candidate& candidate) {
    return candidate.token_id == static_cast<uint32_t>(token_id);
  });
  return c == set.last ? 0 : c->weight;
}

/// Turns p into max(p - q, 0). Leaves weights of zero in the set.
void subtract(CandidateSet& p, const Proposal& proposal) {
  const uint64_t p_total = p.total();
  p.sort_by_id();
  const Candidate* q = proposal.candidates.first;
  for (Candidate* c = p.first; c != p.last; ++c) {
    while (q != proposal.candidates.last && q->token_id < c->token_id) ++q;
    if (q == proposal.candidates.last) return;
    if (q->token_id == c->token_id) c->weight -= std::min(c->weight, rescale_weight(q->weight, proposal.total, p_total));
  }
}

}  // namespace

Proposal draw_draft(const LogitRow& draft_logits, const SampleRequest& request, uint32_t row) {
  Proposal proposal;
  proposal.candidates = weighed_candidates(draft_logits, request);
  if (proposal.candidates.empty()) {
    *proposal.candidates.first = {0.0, 1, 0};
    proposal.candidates.last = proposal.candidates.first + 1;
    proposal.candidates.in_id_order = true;
  }
  proposal.candidates.sort_by_id();
  proposal.total = proposal.candidates.total();
  proposal.token_id = draw(proposal.candidates, uniform_for(request, row, DrawUse::propose));
  return proposal;
}

bool verify_draft(const LogitRow& logits, const SampleRequest& request, uint32_t row, const Proposal& proposal,
                  SampleResult& result) {
  set_token(-1, result);
  CandidateSet p = weighed_candidates(logits, request);
  if (p.empty()) return false;
  const uint64_t q_weight = weight_of(proposal.candidates, proposal.token_id);
  const uint64_t q = rescale_weight(q_weight, proposal.total, p.total());
  const bool accepted =
      accepts_draft(uniform_for(request, row, DrawUse::accept), q, weight_of(p, proposal.token_id));
  if (accepted) {
    result.token_id = proposal.token_id;
  } else {
    subtract(p, proposal);
    result.token_id = draw(p, uniform_for(request, row, DrawUse::residual));
  }
  fill_logprobs(logits, request, result);
  return accepted;
}

}  // namespace mimo_rt
