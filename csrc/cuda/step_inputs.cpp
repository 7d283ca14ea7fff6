#include "cuda/step_inputs.h"

#include <algorithm>

namespace mimo_rt::cuda {
namespace {

uint64_t input_bytes(const StepBlock& block) {
  return block.plan.layout().inputs_end - block.plan.layout().tables;
}

bool has_penalty(const SampleRequest& request) {
  return request.params->repetition_penalty != 1.0f && request.token_counts;
}

uint32_t vocab_size_of(const StepBlock& block) {
  return block.plan.plan().shape().vocab_size;
}

}  // namespace

uint64_t StepInputs::list_bytes(const SampleRequest& request, uint32_t vocab_size) {
  uint64_t bytes = aligned(sizeof(int32_t) * uint64_t{request.num_masked_ids});
  bytes += aligned(sizeof(TokenBias) * request.params->logit_bias.size());
  if (has_penalty(request)) bytes += aligned(sizeof(uint32_t) * uint64_t{vocab_size});
  return bytes;
}

void StepInputs::reserve_lists(const StepBlock& block, uint64_t num_bytes) {
  lists_begin_ = lists_end_ = aligned(input_bytes(block));
  if (staging_.size_bytes() < lists_begin_ + num_bytes)
    staging_ = DeviceBuffer(device_, lists_begin_ + num_bytes, DeviceBuffer::Place::pinned);
  if (lists_.size_bytes() >= num_bytes) return;
  check_free(*device_, num_bytes, "biases, masked ids, token counts and text of a request",
             "Close other sessions and programs.");
  lists_ = DeviceBuffer(device_, num_bytes);
}

void StepInputs::reserve(const StepBlock& block, const StepInput& input) {
  uint64_t num_bytes = 0;
  for (uint32_t r = 0; input.sample && r < input.num_logit_rows; ++r)
    num_bytes += list_bytes(input.sample[r], vocab_size_of(block));
  reserve_lists(block, num_bytes);
}

/// What a request says of how to draw, but for the masked tokens.
SamplingRules StepInputs::put_rules(const StepBlock& block, const SampleRequest& request) {
  const SamplingParams& params = *request.params;
  SamplingRules rules{.temperature = params.temperature,
                      .top_k = params.sample_top_k,
                      .top_p = params.sample_top_p,
                      .min_p = params.min_p,
                      .repetition_penalty = params.repetition_penalty,
                      .seed = params.seed,
                      .sequence_id = request.sequence_id,
                      .biases = put_list(params.logit_bias.data(), params.logit_bias.size()),
                      .num_biases = static_cast<uint32_t>(params.logit_bias.size())};
  if (has_penalty(request))
    rules.token_counts = put_list(request.token_counts, vocab_size_of(block));
  else
    rules.repetition_penalty = 1.0f;
  return rules;
}

void StepInputs::put_sample_row(const StepBlock& block, const StepInput& input, uint32_t row) {
  const StepLayout& layout = block.plan.layout();
  const SampleRequest& request = input.sample[row];
  SampleParams p = block.plan.sample_row(block.addresses, row);
  p.rules = put_rules(block, request);
  p.masked_ids = put_list(request.masked_ids, request.num_masked_ids);
  p.num_masked_ids = request.num_masked_ids;
  p.num_masked_rows = request.num_masked_ids ? 1 : 0;
  put(block, layout.sample_rows + row * sizeof p, &p, 1);
  put(block, layout.sample_positions + row * sizeof(uint32_t), &request.position, 1);
}

/// Where the features of the rows of context are.
void StepInputs::put_context(const StepBlock& block, const StepTables& tables) {
  for (uint32_t r = 0; r < tables.num_context_rows; ++r) {
    const uint32_t id = tables.kv[0].features.row_idx(tables.context_begin + r);
    put(block, block.plan.layout().draft.context_ids + 4 * r, &id, 1);
  }
}

void StepInputs::send(const StepBlock& block, const StepInput& input, std::span<const KvSequence> sequences) {
  const StepLayout& layout = block.plan.layout();
  StepTables tables = block.plan.tables(block.addresses, input.num_tokens, input.num_logit_rows,
                                        input.sample != nullptr);
  tables.num_draft_rows = input.num_draft_rows;
  tables.context_begin = input.context_begin;
  tables.num_context_rows = input.num_context_rows;
  std::ranges::copy(sequences, tables.kv);
  put(block, layout.tables, &tables, 1);
  put_context(block, tables);
  put(block, layout.token_ids, input.token_ids, input.num_tokens);
  put(block, layout.positions, input.positions, input.num_tokens);
  put(block, layout.logit_rows, input.logit_rows, input.num_logit_rows);
  for (uint32_t r = 0; input.sample && r < input.num_logit_rows; ++r)
    put_sample_row(block, input, r);
  send_all(block);
}

void StepInputs::send_all(const StepBlock& block) {
  device_->send(block.addresses.step + block.plan.layout().tables, staging_.data(),
                input_bytes(block));
  if (lists_end_ != lists_begin_)
    device_->send(lists_.data(), staging_.data() + lists_begin_, lists_end_ - lists_begin_);
}

}  // namespace mimo_rt::cuda
