#include "sampling/speculative.h"

namespace mimo_rt {
namespace {

enum class Use : uint32_t { propose = 1, accept = 2, residual = 3 };  // stream 0 is sample_token's

double uniform_for(const SampleRequest& request, uint32_t row, Use use) {
  return uniform_at(request.params->seed, request.sequence_id, request.position, 4 * row + static_cast<uint32_t>(use));
}

uint64_t weight_of(const CandidateSet& set, int32_t token_id) {
  const Candidate* c = std::find_if(set.first, set.last, [token_id](const Candidate& candidate) {
    return candidate.token_id == static_cast<uint32_t>(token_id);
  });
  return c == set.last ? 0 : c->weight;
}

/// q in units of p: rounded down, so that the sum is at most p's. Hence after a rejection, where p(d) < q(d), some
/// other token has p > q and the residual is not empty.
uint64_t rescale(uint64_t weight, uint64_t q_total, uint64_t p_total) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(weight) * p_total / q_total);
}

/// Turns p into max(p - q, 0). Leaves weights of zero in the set.
void subtract(CandidateSet& p, const Proposal& proposal) {
  const uint64_t p_total = p.total();
  p.sort_by_id();
  const Candidate* q = proposal.candidates.first;
  for (Candidate* c = p.first; c != p.last; ++c) {
    while (q != proposal.candidates.last && q->token_id < c->token_id) ++q;
    if (q == proposal.candidates.last) return;
    if (q->token_id == c->token_id) c->weight -= std::min(c->weight, rescale(q->weight, proposal.total, p_total));
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
  proposal.token_id = draw(proposal.candidates, uniform_for(request, row, Use::propose));
  return proposal;
}

bool verify_draft(const float* logits, uint32_t vocab_size, const SampleRequest& request, uint32_t row,
                  const Proposal& proposal, SampleResult& result) {
  result.logprob = 0.0f;
  result.num_alternatives = 0;
  result.token_id = -1;
  CandidateSet p = weighed_candidates({logits, vocab_size}, request);
  if (p.empty()) return false;
  const uint64_t q_weight = weight_of(proposal.candidates, proposal.token_id);
  const unsigned __int128 q = rescale(q_weight, proposal.total, p.total());
  const unsigned __int128 target = weight_of(p, proposal.token_id);
  const auto uniform_bits = static_cast<uint64_t>(uniform_for(request, row, Use::accept) * 0x1p53);
  const bool accepted = uniform_bits * q < target << 53;
  if (accepted) {
    result.token_id = proposal.token_id;
  } else {
    subtract(p, proposal);
    result.token_id = draw(p, uniform_for(request, row, Use::residual));
  }
  fill_logprobs(logits, vocab_size, request, result);
  return accepted;
}

}  // namespace mimo_rt
