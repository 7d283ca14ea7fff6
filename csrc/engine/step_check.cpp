// What must hold of a step before workers touch it: ops do not check and do not throw.
#include "core/checks.h"
#include "engine/round.h"
#include "engine/step.h"

#include <algorithm>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Executor.run";

void check_counts(const Plan& plan, const StepInput& input) {
  const PlanOptions& limits = plan.options();
  MIMO_RT_CHECK(input.num_tokens >= 1 && input.num_tokens <= limits.max_tokens, invalid_argument,
                kWhere, "num_tokens: expected 1..", limits.max_tokens, ", got ", input.num_tokens);
  MIMO_RT_CHECK(input.num_logit_rows <= limits.max_logit_rows, invalid_argument, kWhere,
                "num_logit_rows: expected <= ", limits.max_logit_rows, ", got ",
                input.num_logit_rows);
  MIMO_RT_CHECK(input.token_ids && input.seq_idx && input.positions, invalid_argument, kWhere,
                "token_ids, seq_idx and positions: expected arrays, got nullptr");
  MIMO_RT_CHECK(input.logit_rows || !input.num_logit_rows, invalid_argument, kWhere,
                "logit_rows: expected an array, got nullptr");
}

void check_logit_rows(const StepInput& input, const StepOutput& output) {
  for (uint32_t i = 0; i < input.num_logit_rows; ++i) {
    MIMO_RT_CHECK(input.logit_rows[i] < input.num_tokens, invalid_argument, kWhere, "logit_rows[",
                  i, "]: expected < ", input.num_tokens, ", got ", input.logit_rows[i]);
    MIMO_RT_CHECK(i == 0 || input.logit_rows[i] > input.logit_rows[i - 1], invalid_argument, kWhere,
                  "logit_rows[", i, "]: expected ascending rows, got ", input.logit_rows[i],
                  " after ", i ? input.logit_rows[i - 1] : 0);
  }
  const uint32_t most = input.sample ? kMaxBestLogits : 0;
  MIMO_RT_CHECK(input.num_best_logits <= most, invalid_argument, kWhere, "num_best_logits: expected <= ",
                most, input.sample ? "" : " without sampling", ", got ", input.num_best_logits);
  if (!input.sample) return;
  MIMO_RT_CHECK(output.sampled, invalid_argument, kWhere,
                "sampled: expected storage for ", input.num_logit_rows, " results, got nullptr");
  for (uint32_t i = 0; i < input.num_logit_rows; ++i) {
    MIMO_RT_CHECK(input.sample[i].params && input.sample[i].scratch, invalid_argument, kWhere,
                  "sample[", i, "]: expected params and scratch, got nullptr");
    const uint32_t row = input.logit_rows[i];
    const bool follows = i && input.logit_rows[i - 1] + 1 == row && input.seq_idx[row - 1] == input.seq_idx[row];
    MIMO_RT_CHECK(follows || !input.sample[i].holds_draft, invalid_argument, kWhere, "sample[", i,
                  "]: expected a draft only behind a logit row of its sequence");
    const uint32_t num_needed = num_best_logits(input.sample[i]);
    MIMO_RT_CHECK(input.wants_logits() || (num_needed && num_needed <= input.num_best_logits),
                  invalid_argument, kWhere, "sample[", i, "]: expected a request that needs no more than the ",
                  input.num_best_logits, " best logits");
  }
}

/// Rows of context: their features must exist and must still be in the ring.
void check_context(const Plan& plan, const KvCache& cache, const StepInput& input) {
  const uint32_t num_rows = input.num_context_rows, begin = input.context_begin;
  MIMO_RT_CHECK(num_rows <= plan.options().max_context_rows, invalid_argument, kWhere,
                "num_context_rows: expected <= ", plan.options().max_context_rows, ", got ",
                num_rows);
  if (!num_rows) return;
  const uint32_t seq = input.seq_idx[0], pos = input.positions[0];
  MIMO_RT_CHECK(begin <= pos && num_rows <= pos - begin, invalid_argument, kWhere,
                "context rows: expected to end at position ", pos, " of sequence ", seq,
                " or before, got ", begin, " + ", num_rows);
  MIMO_RT_CHECK(pos - begin <= cache.feature_rows(seq), invalid_argument, kWhere,
                "context_begin: expected one of the last ", cache.feature_rows(seq),
                " positions before ", pos, ", got ", begin);
}

/// Positions that rounds may still write end here, at most.
uint64_t last_position(const RoundState& rounds, uint32_t block_size) {
  const uint64_t by_rounds = uint64_t{rounds.max_rounds} * block_size;
  const uint64_t num_left = rounds.request.max_tokens - rounds.num_output;
  return std::min({uint64_t{rounds.request.max_context}, rounds.position + by_rounds,
                   rounds.position + std::min(num_left, uint64_t{rounds.request.max_context})});
}

}  // namespace

void StepChecker::check(const ModelConfig& config, const Plan& plan, const KvCache& cache,
                        const StepInput& input, const StepOutput& output) {
  MIMO_RT_CHECK(!plan.options().is_round, invalid_argument, kWhere,
                "plan: expected one of a step, got one of a round");
  MIMO_RT_CHECK(!input.round && !input.num_draft_rows, invalid_argument, kWhere,
                "round and num_draft_rows: expected none in a step");
  check_rows(config, plan, cache, input);
  check_logit_rows(input, output);
}

bool StepChecker::check_rounds(const ModelConfig& config, const Plan& plan, const KvCache& cache,
                               const RoundState& rounds) {
  MIMO_RT_CHECK(plan.options().is_round, invalid_argument, kWhere,
                "plan: expected one of a round, got one of a step");
  MIMO_RT_CHECK(rounds.request.params, invalid_argument, kWhere,
                "params: expected sampling parameters, got nullptr");
  if (rounds.end != RoundEnd::running) return false;
  const StepInput& input = rounds.input;
  const uint32_t block_size = plan.shape().draft.block_size;
  MIMO_RT_CHECK(input.round == &rounds && input.num_tokens && input.positions[0] == rounds.position,
                invalid_argument, kWhere, "rounds: expected RoundState::begin() just before");
  MIMO_RT_CHECK(!rounds.request.lookup || rounds.request.lookup->size() == rounds.position + 1, invalid_argument, kWhere,
                "lookup: expected a text that ends with the anchor at position ", rounds.position, ", got ",
                rounds.request.lookup ? rounds.request.lookup->size() : 0, " tokens");
  const bool runs_draft = input.num_tokens > 1 && plan.shape().draft.num_layers;
  MIMO_RT_CHECK(input.num_draft_rows == (runs_draft ? block_size : 0), invalid_argument,
                kWhere, "num_draft_rows: expected the block size ", block_size,
                " in a round with drafts of a model, else 0; got ", input.num_draft_rows);
  check_rows(config, plan, cache, input);
  MIMO_RT_CHECK(rounds.request.max_context_rows <= plan.options().max_context_rows,
                invalid_argument, kWhere, "max_context_rows: expected <= ",
                plan.options().max_context_rows, " (the plan's), got ",
                rounds.request.max_context_rows);
  // Rounds prepare each other: what the last one may write must be there before the first.
  const uint64_t needed = last_position(rounds, block_size);
  const uint32_t reserved = cache.reserved_tokens(input.seq_idx[0]);
  MIMO_RT_CHECK(reserved >= needed, invalid_argument, kWhere, "KV cache: expected ", needed,
                " reserved positions for these rounds, got ", reserved);
  const uint32_t max_rows = std::min(block_size, cache.max_context());
  MIMO_RT_CHECK(max_rows <= cache.max_step_tokens(), invalid_argument, kWhere,
                "KV cache: expected max_step_tokens >= ", max_rows, " (block size), got ",
                cache.max_step_tokens());
  return true;
}

void StepChecker::check_rows(const ModelConfig& config, const Plan& plan, const KvCache& cache,
                             const StepInput& input) {
  check_counts(plan, input);
  const size_t num_layers = config.layers.size() + plan.shape().draft.num_layers;
  MIMO_RT_CHECK(cache.num_layers() == num_layers, invalid_argument, kWhere,
                "KV cache: expected ", num_layers, " layers, got ", cache.num_layers());
  next_pos_.assign(cache.num_seqs(), 0);
  num_rows_.assign(cache.num_seqs(), 0);
  for (uint32_t t = 0; t < input.num_tokens; ++t) {
    const int32_t token_id = input.token_ids[t];
    MIMO_RT_CHECK(token_id >= 0 && static_cast<uint32_t>(token_id) < config.vocab_size,
                  invalid_argument, kWhere, "token_ids[", t, "]: expected 0..",
                  config.vocab_size - 1, ", got ", token_id);
    const uint32_t seq = input.seq_idx[t], pos = input.positions[t];
    MIMO_RT_CHECK(seq < cache.num_seqs(), invalid_argument, kWhere, "seq_idx[", t,
                  "]: expected < ", cache.num_seqs(), ", got ", seq);
    MIMO_RT_CHECK(pos < cache.reserved_tokens(seq), invalid_argument, kWhere, "positions[", t,
                  "]: expected < ", cache.reserved_tokens(seq), " (reserved), got ", pos);
    MIMO_RT_CHECK(!num_rows_[seq] || pos == next_pos_[seq], invalid_argument, kWhere, "positions[",
                  t, "]: expected ", next_pos_[seq], " (consecutive), got ", pos);
    // More rows than that could overwrite ring rows that the step's first query still sees.
    MIMO_RT_CHECK(++num_rows_[seq] <= cache.max_step_tokens(), invalid_argument, kWhere,
                  "rows of sequence ", seq, ": expected <= ", cache.max_step_tokens(),
                  " (max_step_tokens), got more");
    next_pos_[seq] = pos + 1;
  }
  check_context(plan, cache, input);
}

}  // namespace mimo_rt
