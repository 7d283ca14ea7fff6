// Checks of the sampling kernels' arguments. No CUDA in here: they are tested on every machine.
#include "cuda/sampling.h"

#include <cmath>

#include "cuda/param_checks.h"

namespace mimo_rt::cuda {
namespace {

constexpr const char* kWhere = "cuda.sample";

void check_rules(const SamplingRules& rules) {
  MIMO_RT_CHECK(rules.temperature >= 0.0f && std::isfinite(rules.temperature), invalid_argument,
                kWhere, "rules.temperature: expected a number >= 0, got ", rules.temperature);
  MIMO_RT_CHECK(rules.top_p > 0.0f && rules.top_p <= 1.0f, invalid_argument, kWhere,
                "rules.top_p: expected a number in (0, 1], got ", rules.top_p);
  MIMO_RT_CHECK(rules.min_p >= 0.0f && rules.min_p < 1.0f, invalid_argument, kWhere,
                "rules.min_p: expected a number in [0, 1), got ", rules.min_p);
  MIMO_RT_CHECK(rules.repetition_penalty > 0.0f && std::isfinite(rules.repetition_penalty),
                invalid_argument, kWhere, "rules.repetition_penalty: expected a number > 0, got ",
                rules.repetition_penalty);
  if (rules.repetition_penalty != 1.0f)
    check_pointer(kWhere, "rules.token_counts", rules.token_counts, 4);
  if (rules.num_biases != 0) check_pointer(kWhere, "rules.biases", rules.biases, 4);
}

void check_scratch(const SampleScratch& scratch, uint32_t vocab_size) {
  check_pointer(kWhere, "scratch.weights", scratch.weights, 8);
  check_pointer(kWhere, "scratch.totals", scratch.totals, 8);
  check_pointer(kWhere, "scratch.slice_sums", scratch.slice_sums, 8);
  check_pointer(kWhere, "scratch.best_scores", scratch.best_scores, 8);
  check_pointer(kWhere, "scratch.best_ids", scratch.best_ids, 4);
  check_pointer(kWhere, "scratch.near_counts", scratch.near_counts, 4);
  check_pointer(kWhere, "scratch.lists", scratch.lists, 4);
  MIMO_RT_CHECK(scratch.num_parts == num_slices_of(vocab_size), invalid_argument, kWhere,
                "scratch.num_parts: expected the ", num_slices_of(vocab_size), " slices of a row, got ",
                scratch.num_parts);
}

}  // namespace

void check_sample(const SampleParams& p) {
  check_num_rows(kWhere, "num_rows", p.num_rows);
  MIMO_RT_CHECK(p.vocab_size >= 1 && p.vocab_size <= kMaxVocabSize, unsupported_shape, kWhere,
                "vocab_size: expected 1 .. ", kMaxVocabSize, ", got ", p.vocab_size);
  MIMO_RT_CHECK(p.role == SampleRole::target || p.role == SampleRole::draft, invalid_argument,
                kWhere, "role: expected 0 or 1, got ", static_cast<uint32_t>(p.role));
  check_rows(kWhere, "logits", p.logits, p.vocab_size);
  check_rules(p.rules);
  check_pointer(kWhere, "position", p.position, 4);
  check_pointer(kWhere, "tokens", p.tokens, 4);
  check_scratch(p.scratch, p.vocab_size);
  if (p.num_masked_ids != 0) check_pointer(kWhere, "masked_ids", p.masked_ids, 4);
  if (p.block) check_pointer(kWhere, "block", p.block, 4);
  const bool is_target = p.role == SampleRole::target;
  MIMO_RT_CHECK(is_target || !p.block, invalid_argument, kWhere,
                "block: expected null, the role is draft");
  if (p.ids) check_pointer(kWhere, "ids", p.ids, 4);
  MIMO_RT_CHECK(!p.ids || !is_target, invalid_argument, kWhere,
                "ids: expected null, unless the role is draft");
  if (p.proposal_ids) check_pointer(kWhere, "proposal_ids", p.proposal_ids, 4);
  MIMO_RT_CHECK((p.proposal_ids != nullptr) == (p.num_proposal_ids != 0), invalid_argument, kWhere,
                "num_proposal_ids: expected > 0 with proposal_ids, else 0, got ", p.num_proposal_ids);
  if (!p.proposals.weights) return;
  MIMO_RT_CHECK(is_target, invalid_argument, kWhere,
                "proposals: expected null, the role is draft");
  check_pointer(kWhere, "block", p.block, 4);
  check_pointer(kWhere, "proposals.weights", p.proposals.weights, 8);
  check_pointer(kWhere, "proposals.totals", p.proposals.totals, 8);
}

void check_sample_rows(const SampleRowsParams& p) {
  constexpr const char* kSampleRows = "cuda.sample_rows";
  check_num_rows(kSampleRows, "num_rows", p.num_rows);
  check_pointer(kSampleRows, "rows", p.rows, 8);
}

void check_accept(const AcceptParams& p) {
  constexpr const char* kAccept = "cuda.accept";
  check_num_rows(kAccept, "num_rows", p.num_rows);
  check_pointer(kAccept, "tokens", p.tokens, 4);
  check_pointer(kAccept, "block", p.block, 4);
  check_pointer(kAccept, "num_accepted", p.num_accepted, 4);
  check_pointer(kAccept, "next_token", p.next_token, 4);
}

}  // namespace mimo_rt::cuda
