// The half of StepInputs that has to do with rounds.
#include <algorithm>

#include "cuda/step_inputs.h"

namespace mimo_rt::cuda {
namespace {

/// What all rows have in common; the masked tokens are those of the first rows.
SampleRequest common_request(const RoundRequest& asked) {
  SampleRequest request;
  request.params = asked.params;
  request.token_counts = asked.token_counts;
  request.masked_ids = asked.stop_ids.data();
  request.num_masked_ids = static_cast<uint32_t>(asked.stop_ids.size());
  request.sequence_id = asked.sequence_id;
  return request;
}

uint32_t num_masked_rows(uint64_t min_tokens, uint64_t num_output) {
  const uint64_t num_rows = min_tokens - std::min(min_tokens, num_output);
  return static_cast<uint32_t>(std::min<uint64_t>(num_rows, kMaxStepTokens));
}

}  // namespace

void StepInputs::reserve(const StepBlock& block, const RoundState& rounds) {
  const uint32_t vocab_size = block.plan.plan().shape().vocab_size;
  reserve_lists(block, list_bytes(common_request(rounds.request), vocab_size));
}

void StepInputs::send(const StepBlock& block, const RoundState& rounds, RoundMailbox* mailbox,
                      uint32_t first_number) {
  const StepLayout& layout = block.plan.layout();
  const RoundRequest& asked = rounds.request;
  const StepInput& input = rounds.input;
  const SampleRequest request = common_request(asked);
  RoundTables t = block.plan.round(block.addresses);
  t.sample.rules = put_rules(block, request);
  t.sample.masked_ids = t.stop_ids = put_list(request.masked_ids, request.num_masked_ids);
  t.sample.num_masked_ids = t.num_stop_ids = request.num_masked_ids;
  t.sample.num_masked_rows = num_masked_rows(asked.min_tokens, rounds.num_output);
  t.sample.num_rows = input.num_tokens;
  t.token_counts = const_cast<uint32_t*>(t.sample.rules.token_counts);  // on the device: ours
  t.min_tokens = asked.min_tokens;
  t.max_tokens = asked.max_tokens;
  t.max_context = asked.max_context;
  t.max_context_rows = asked.max_context_rows;
  t.lazy_context_rows = std::min(kLazyContextRows, asked.max_context_rows);
  t.mailbox = mailbox;
  t.num_output = rounds.num_output;
  t.token_position = rounds.position + 1;
  t.num_context = rounds.num_context;
  t.number = first_number;
  put(block, layout.round, &t, 1);

  StepTables tables =
      block.plan.tables(block.addresses, input.num_tokens, input.num_logit_rows, false);
  tables.num_draft_rows = input.num_draft_rows;
  tables.context_begin = input.context_begin;
  tables.num_context_rows = input.num_context_rows;
  put(block, layout.tables, &tables, 1);
  // Rows that later rounds may have, too.
  put(block, layout.token_ids, rounds.block.data(), t.block_size);
  put(block, layout.seq_idx, rounds.seq_idx.data(), t.block_size);
  put(block, layout.positions, rounds.positions.data(), t.block_size);
  put(block, layout.logit_rows, rounds.logit_rows.data(), t.block_size);
  send_all(block);
}

}  // namespace mimo_rt::cuda
