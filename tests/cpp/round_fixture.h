// A toy target and draft, given by functions, run through rounds or decoded plainly: RoundState without an executor.
#pragma once

#include "engine/round.h"

#include <functional>
#include <memory>
#include <vector>

namespace round_fixture {

using namespace mimo_rt;

using Logits = std::vector<float>;

struct Toy {
  uint32_t vocab_size;
  std::function<Logits(int32_t token_id, uint32_t position)> target;  ///< of the token after this one
  std::function<Logits(int32_t anchor, uint32_t position, uint32_t row)> draft;
  const int32_t* draft_ids = nullptr;  ///< tokens of the draft's logits; nullptr: all, in order
};

/// What a generation is given, and where it begins: `first` was emitted before and stands at `position`.
struct Start {
  SamplingParams params;
  std::vector<int32_t> stop_ids = {};
  uint64_t sequence_id = 0, min_tokens = 0, max_tokens = 100;
  uint32_t max_context = 1 << 20, position = 10;
  int32_t first = 0;
  std::vector<uint32_t> counts = {};  ///< with `first`
};

struct Output {
  std::vector<SampleResult> tokens;  ///< after `first`
  std::vector<uint32_t> counts;
  RoundEnd end = RoundEnd::running;
};

/// One step per token, as the generation loop does it.
inline Output decode_plainly(const Toy& toy, const Start& start) {
  Output output{.tokens = {}, .counts = start.counts};
  std::vector<std::max_align_t> scratch(sampler_scratch_bytes(toy.vocab_size) / sizeof(std::max_align_t) + 1);
  int32_t token = start.first;
  for (uint32_t position = start.position;; ++position) {
    const uint64_t num_output = 1 + output.tokens.size();
    if (num_output >= start.max_tokens) output.end = RoundEnd::max_tokens;
    else if (position >= start.max_context) output.end = RoundEnd::context;
    if (output.end != RoundEnd::running) return output;
    SampleRequest request;
    request.params = &start.params;
    request.token_counts = output.counts.empty() ? nullptr : output.counts.data();
    request.masked_ids = start.stop_ids.data();
    request.num_masked_ids = num_output < start.min_tokens ? uint32_t(start.stop_ids.size()) : 0;
    request.sequence_id = start.sequence_id;
    request.position = position + 1;
    request.scratch = scratch.data();
    const Logits logits = toy.target(token, position);
    SampleResult result;
    sample_token({logits.data(), toy.vocab_size}, request, result);
    token = result.token_id;
    if (token < 0) output.end = RoundEnd::bad_logits;
    if (token < 0) return output;
    if (!output.counts.empty()) ++output.counts[size_t(token)];
    output.tokens.push_back(result);
    for (const int32_t stop : start.stop_ids)
      if (stop == token) output.end = RoundEnd::stop_id;
    if (output.end != RoundEnd::running) return output;
  }
}

/// Rounds of one generation. Members may be changed before run().
struct Rounds {
  Rounds(const Toy& toy_, const Start& start, DraftOptions options, uint32_t block_size_)
      : toy(toy_), params(start.params), stop_ids(start.stop_ids), block_size(block_size_),
        width(options, block_size_), stride((toy_.vocab_size + 15) / 16 * 16) {
    output.counts = start.counts;
    RoundRequest request;
    request.params = &params;
    request.sequence_id = start.sequence_id;
    request.token_counts = output.counts.empty() ? nullptr : output.counts.data();
    request.stop_ids = stop_ids;
    request.min_tokens = start.min_tokens;
    request.max_tokens = start.max_tokens;
    request.max_context = start.max_context;
    request.max_context_rows = 64;
    request.proposal = options.proposal;
    width.begin(request.max_tokens, {});
    state = std::make_unique<RoundState>(request, width, toy.vocab_size, block_size);
    state->position = start.position;
    state->num_context = start.position;
    state->block[0] = start.first;
    state->num_output = 1;
  }

  void run_round() {
    if (before_round) before_round();
    const StepInput& input = state->input;
    for (uint32_t row = 0; row < input.num_draft_rows; ++row) {
      const Logits logits = row ? toy.draft(state->block[0], state->position, row) : Logits();
      propose_token(*state, row, {logits.data(), static_cast<uint32_t>(logits.size()), toy.draft_ids});
    }
    rows.assign(size_t{stride} * input.num_tokens, 1e30f);  // padding must not be read
    for (uint32_t row = 0; row < input.num_tokens; ++row) {
      const Logits logits = toy.target(input.token_ids[row], input.positions[row]);
      std::copy(logits.begin(), logits.end(), rows.begin() + row * stride);
    }
    accept_round(*state, {rows.data(), stride});
  }

  void drain() {
    for (; num_read < state->ring.num_pushed(); ++num_read) output.tokens.push_back(state->ring[num_read]);
    state->ring.release(num_read);
  }

  Output run() {
    state->begin();
    while (state->end == RoundEnd::running) {
      run_round();
      drain();
    }
    output.end = state->end;
    return output;
  }

  const Toy& toy;
  SamplingParams params;
  std::vector<int32_t> stop_ids;
  uint32_t block_size;
  DraftWidth width;
  uint32_t stride;
  std::unique_ptr<RoundState> state;
  Output output;
  uint64_t num_read = 0;
  std::vector<float> rows;
  std::function<void()> before_round;
};

}  // namespace round_fixture
