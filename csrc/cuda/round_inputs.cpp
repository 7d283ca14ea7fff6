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

bool looks_up(const RoundState& rounds) { return rounds.request.lookup && rounds.width.max_drafts() != 0; }

/// Of the longest text: its last token has no keys and values.
uint64_t text_bytes(uint32_t max_context) {
  const uint64_t num_groups = (uint64_t{max_context} + kTextAlignment) / kTextAlignment;
  return num_groups * kTextAlignment * sizeof(int32_t);
}

}  // namespace

void StepInputs::reserve(const StepBlock& block, const RoundState& rounds) {
  const uint32_t vocab_size = block.plan.plan().shape().vocab_size;
  uint64_t num_bytes = list_bytes(common_request(rounds.request), vocab_size);
  if (looks_up(rounds)) num_bytes += text_bytes(rounds.request.max_context);  // for all launches to come
  reserve_lists(block, num_bytes);
}

/// How drafts are drawn: as the target's rows, or the best ones.
void StepInputs::put_draft(const StepBlock& block, const RoundState& rounds, RoundTables& round) {
  const uint64_t offset = block.plan.layout().draft.sample;
  SampleParams p = block.plan.draft_sample(block.addresses);
  p.rules = round.sample.rules;
  p.position = round.sample.position;
  p.masked_ids = round.sample.masked_ids;
  p.num_masked_ids = round.sample.num_masked_ids;
  p.num_masked_rows = round.sample.num_masked_rows;
  if (rounds.request.proposal == DraftOptions::Proposal::argmax) p.rules.temperature = 0.0f;
  if (p.rules.temperature > 0.0f) {
    round.sample.proposals = p.scratch;
    round.sample.proposal_ids = p.ids;
    round.sample.num_proposal_ids = p.ids ? p.vocab_size : 0;
  }
  put(block, offset, &p, 1);
  round.draft = reinterpret_cast<SampleParams*>(block.addresses.step + offset);
}

void StepInputs::send(const StepBlock& block, const RoundState& rounds, const KvSequence& sequence, RoundMailbox* mailbox,
                      uint32_t first_number) {
  const StepLayout& layout = block.plan.layout();
  const RoundRequest& asked = rounds.request;
  StepInput input = rounds.input;
  // As the device does it for the rounds that follow: no row is left out for the sake of its draft's lead. Of lookups, the
  // host knows the match.
  if (!asked.lookup) input.num_tokens = 1 + std::min(input.num_tokens - 1, mailbox->order.max_drafts(1));
  if (input.num_tokens == 1) input.num_draft_rows = 0;
  const SampleRequest request = common_request(asked);
  RoundTables t = block.plan.round(block.addresses);
  t.sample.rules = put_rules(block, request);
  t.sample.masked_ids = t.stop_ids = put_list(request.masked_ids, request.num_masked_ids);
  t.sample.num_masked_ids = t.num_stop_ids = request.num_masked_ids;
  t.sample.num_masked_rows = num_masked_rows(asked.min_tokens, rounds.num_output, kMaxBlockTokens);
  t.sample.num_rows = input.num_tokens;
  t.token_counts = const_cast<uint32_t*>(t.sample.rules.token_counts);  // on the device: ours
  t.min_tokens = asked.min_tokens;
  t.max_tokens = asked.max_tokens;
  t.max_context = asked.max_context;
  t.max_context_rows = asked.max_context_rows;
  t.mailbox = mailbox;
  t.num_output = rounds.num_output;
  t.token_position = rounds.position + 1;
  t.num_context = rounds.num_context;
  t.number = first_number;
  if (block.plan.plan().shape().draft.num_layers != 0) put_draft(block, rounds, t);
  if (looks_up(rounds)) t.text = put_list(asked.lookup->token_ids().data(), asked.lookup->size());
  put(block, layout.round, &t, 1);

  StepTables tables = block.plan.tables(block.addresses, input.num_tokens, input.num_tokens, false);
  tables.num_draft_rows = input.num_draft_rows;
  tables.context_begin = input.context_begin;
  tables.num_context_rows = input.num_context_rows;
  std::fill_n(tables.kv, t.block_size, sequence);
  put(block, layout.tables, &tables, 1);
  put_context(block, tables);
  // Rows that later rounds may have, too.
  put(block, layout.token_ids, rounds.block.data(), t.block_size);
  put(block, layout.positions, rounds.positions.data(), t.block_size);
  put(block, layout.logit_rows, rounds.logit_rows.data(), t.block_size);
  send_all(block);
}

}  // namespace mimo_rt::cuda
