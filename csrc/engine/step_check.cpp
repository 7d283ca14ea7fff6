// What must hold of a step before workers touch it: ops do not check and do not throw.
#include "core/checks.h"
#include "engine/step.h"

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
  if (!input.sample) return;
  MIMO_RT_CHECK(output.sampled, invalid_argument, kWhere,
                "sampled: expected storage for ", input.num_logit_rows, " results, got nullptr");
  for (uint32_t i = 0; i < input.num_logit_rows; ++i)
    MIMO_RT_CHECK(input.sample[i].params && input.sample[i].scratch, invalid_argument, kWhere,
                  "sample[", i, "]: expected params and scratch, got nullptr");
}

}  // namespace

void StepChecker::check(const ModelConfig& config, const Plan& plan, const KvCache& cache,
                        const StepInput& input, const StepOutput& output) {
  check_counts(plan, input);
  MIMO_RT_CHECK(cache.num_layers() == config.layers.size(), invalid_argument, kWhere,
                "KV cache: expected ", config.layers.size(), " layers, got ", cache.num_layers());
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
  check_logit_rows(input, output);
}

}  // namespace mimo_rt
