#include "engine/round.h"

#include "core/checks.h"

#include <algorithm>
#include <chrono>

namespace mimo_rt {
namespace {

uint64_t steady_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

/// How the token after row `row` of the running round is chosen when `num_before` tokens precede it in the output:
/// exactly as Generation would ask for it in a step of its own.
SampleRequest row_request(const RoundState& state, uint32_t row, uint64_t num_before) {
  const RoundRequest& asked = state.request;
  SampleRequest request;
  request.params = asked.params;
  request.token_counts = asked.token_counts;
  request.sequence_id = asked.sequence_id;
  request.position = state.position + row + 1;
  request.masked_ids = asked.stop_ids.data();
  request.num_masked_ids = num_before < asked.min_tokens ? static_cast<uint32_t>(asked.stop_ids.size()) : 0;
  return request;
}

/// Of drafts that follow a match of `match` tokens.
void score_found(uint32_t match, std::span<float> scores) {
  for (uint32_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(match + i);
}

/// What became of a round's rows.
struct Emitted {
  uint32_t num_tokens = 0;
  int32_t last = -1;
  bool last_was_drafted = false;  ///< the last token equals the draft of its position
  RoundEnd end = RoundEnd::running;
};

}  // namespace

/// The tasks, with access to what RoundState keeps to itself.
struct RoundTasks {
  RoundState& state;

  void propose(uint32_t row, const LogitRow& draft_logits);
  void narrow(uint32_t row, const LogitRow& draft_logits);
  void accept(const TargetRows& rows, double spent = 0.0);
  void replay(const RoundReport& report);

 private:
  void check_lookup(const RoundReport& report);
  Emitted emit_rows(const TargetRows& rows);
  bool draw_row(uint32_t row, const TargetRows& rows, SampleResult& token);
  void emit(const SampleResult& token, Emitted& emitted);
  void finish(const Emitted& emitted, uint64_t ns, double spent = 0.0);
};

void TokenRing::push(const SampleResult& token) {
  const uint64_t number = num_pushed_.load(std::memory_order_relaxed);
  tokens_[number % kCapacity] = token;
  num_pushed_.store(number + 1, std::memory_order_release);
}

uint32_t TokenRing::free() const {
  const uint64_t unread = num_pushed_.load(std::memory_order_relaxed) - num_read_.load(std::memory_order_acquire);
  return kCapacity - static_cast<uint32_t>(unread);
}

RoundState::RoundState(const RoundRequest& request_, DraftWidth& width_, uint32_t vocab_size, uint32_t block_size)
    : request(request_), width(width_), vocab_size_(vocab_size), block_size_(block_size) {
  constexpr uint64_t kUnit = sizeof(std::max_align_t);
  const uint64_t num_units = (sampler_scratch_bytes(vocab_size) + kUnit - 1) / kUnit;
  scratch_stride_ = num_units * kUnit;
  scratch_ = std::make_unique_for_overwrite<std::max_align_t[]>(num_units * (draws_drafts() ? block_size : 1));
  for (uint32_t row = 0; row < kMaxBlockSize; ++row) logit_rows[row] = row;
}

bool RoundState::draws_drafts() const {
  return request.proposal == DraftOptions::Proposal::sampled && !request.lookup && request.params->temperature > 0.0f;
}

uint8_t* RoundState::scratch(uint32_t row) const {
  return reinterpret_cast<uint8_t*>(scratch_.get()) + row * scratch_stride_;
}

void RoundState::begin() {
  num_rounds = 0;
  num_rows = 0;
  active_experts = 0;
  stop_requested = false;
  end = limit_reached();
  prepare_round();
  round_begin_ns = steady_ns();
}

void RoundState::fill_requests(std::span<SampleRequest> requests) const {
  for (uint32_t row = 0; row < input.num_tokens; ++row) {
    requests[row] = row_request(*this, row, num_output + row);
    requests[row].scratch = scratch(0);
    requests[row].holds_draft = row != 0;
  }
}

void RoundState::cut_last_round(uint32_t num_tokens) {
  width.cut_last(num_tokens - 1);
  if (!request.rounds) return;
  RoundStats& round = request.rounds->back();
  round.num_tokens = num_tokens;
  round.num_drafts = num_tokens - 1;
}

void RoundState::count_experts(uint64_t num_active, uint32_t num_last) {
  active_experts += num_active;
  if (!request.rounds) return;
  for (RoundStats& round : std::span(*request.rounds).last(num_last))
    round.num_active_experts = static_cast<double>(num_active) / num_last;
}

RoundEnd RoundState::limit_reached() const {
  if (num_output >= request.max_tokens) return RoundEnd::max_tokens;
  if (position >= request.max_context) return RoundEnd::context;
  if (should_stop() || ring.free() < block_size_) return RoundEnd::requested;
  return num_rounds >= max_rounds ? RoundEnd::max_rounds : RoundEnd::running;
}

/// What is left for the round at `position`, if there is to be one.
RoundRoom RoundState::room() const {
  return {.num_tokens = request.max_tokens - num_output,
          .num_positions = request.max_context - position,
          .num_pending = request.max_context_rows ? position - num_context : 0,
          .max_context_rows = request.max_context_rows,
          .block_size = block_size_};
}

void RoundState::prepare_round() {
  input = {};
  if (end != RoundEnd::running) return;
  const RoundRoom room = this->room();
  const uint32_t limit = room.max_drafts();
  if (request.lookup) {
    look_up_drafts(limit);
    const std::span<const float> scores(&scores_[1], num_found_);
    if (is_shared) offer = width.offer(scores);
    num_proposals_ = is_shared ? offer.num_drafts : width.choose_among(scores);
  } else if (is_shared) {
    num_proposals_ = 0;
    narrows_ = false;
  } else {
    const uint32_t num_drafts = width.choose(limit);
    narrows_ = num_drafts && width.narrows() && !draws_drafts();
    num_proposals_ = narrows_ ? std::min(limit, width.max_drafts()) : num_drafts;
    num_proposed_.store(0, std::memory_order_relaxed);
    input.num_draft_rows = num_drafts ? block_size_ : 0;
    input.num_context_rows = room.num_context_rows(num_drafts != 0);
  }
  input.num_tokens = 1 + num_proposals_;
  input.context_begin = num_context;
  for (uint32_t row = 0; row < input.num_tokens; ++row) positions[row] = position + row;
  input.token_ids = block.data();
  input.seq_idx = seq_idx.data();
  input.positions = positions.data();
  input.num_logit_rows = input.num_tokens;
  input.logit_rows = logit_rows.data();
  input.num_best_logits = num_best_logits(row_request(*this, 0, num_output));  // no later row masks more
  input.round = this;
}

/// Fills the block with what is found, at most `limit` drafts, and scores them.
void RoundState::look_up_drafts(uint32_t limit) {
  num_found_ = 0;
  limit = std::min(limit, width.max_drafts());
  if (is_shared && request.token_counts) limit = 0;  // they would have to be counted between the rows
  if (limit == 0) return;
  const uint32_t match = request.lookup->propose({&block[1], limit});
  num_found_ = match ? limit : 0;
  score_found(match, {&scores_[1], num_found_});
}

uint32_t RoundState::max_drafts(uint32_t match) const {
  if (!request.lookup) return width.choose(block_size_ - 1);
  std::array<float, kMaxBlockSize> scores;
  const std::span<float> found(scores.data(), std::min(block_size_ - 1, width.max_drafts()));
  score_found(match, found);
  return width.choose_among(found);
}

void RoundTasks::propose(uint32_t row, const LogitRow& draft_logits) {
  if (row == 0 || row > state.num_proposals_) return;  // the block is wider than what this round may verify
  SampleRequest request = row_request(state, row - 1, state.num_output + row - 1);
  if (state.draws_drafts()) {
    request.scratch = state.scratch(row);
    state.proposals_[row] = draw_draft(draft_logits, request, row);
    state.block[row] = state.proposals_[row].token_id;
  } else {
    const int32_t best = best_token(draft_logits, request);
    state.block[row] = std::max(best, 0);  // a broken draft proposes something; the target decides
  }
  if (state.narrows_) narrow(row, draft_logits);
}

void RoundTasks::narrow(uint32_t row, const LogitRow& draft_logits) {
  state.scores_[row] = logit_lead(draft_logits, state.block[row]);
  const uint32_t num_proposals = state.num_proposals_;
  // Release and acquire: the last one sees the scores of all.
  if (state.num_proposed_.fetch_add(1, std::memory_order_acq_rel) + 1 < num_proposals) return;
  const uint32_t num_drafts = state.width.narrow({&state.scores_[1], num_proposals});
  state.input.num_tokens = state.input.num_logit_rows = 1 + num_drafts;
}

void RoundTasks::accept(const TargetRows& rows, double spent) {
  finish(emit_rows(rows), 0, spent);
}

void RoundTasks::replay(const RoundReport& report) {
  if (state.request.lookup) check_lookup(report);
  Emitted emitted;
  SampleResult token;
  for (uint32_t row = 0; row < report.tokens.size(); ++row) {
    set_token(report.tokens[row], token);
    if (report.logits) {
      SampleRequest request = row_request(state, row, state.num_output);
      request.scratch = state.scratch(0);
      fill_logprobs({report.logits + uint64_t{row} * report.stride, state.vocab_size_}, request, token);
    }
    emit(token, emitted);
  }
  emitted.last_was_drafted = report.last_was_drafted;
  if (report.has_bad_logits) emitted.end = RoundEnd::bad_logits;
  state.input.num_tokens = report.num_tokens;
  state.input.num_context_rows = report.num_context_rows;
  state.narrows_ = false;
  finish(emitted, report.ns);
}

/// The device has looked up the same drafts.
void RoundTasks::check_lookup(const RoundReport& report) {
  if (state.end != RoundEnd::running) state.look_up_drafts(state.room().max_drafts());  // asked to stop, but it ran
  MIMO_RT_CHECK(report.num_tokens - 1 <= state.num_found_, internal, "Executor.run_rounds", "round at position ",
                state.position, ": expected at most the ", state.num_found_, " drafts that the text has, got ",
                report.num_tokens - 1);
  for (size_t i = 0; i + 1 < report.tokens.size(); ++i)  // confirmed drafts
    MIMO_RT_CHECK(report.tokens[i] == state.block[1 + i], internal, "Executor.run_rounds", "draft ", i + 1, " at position ",
                  state.position, ": expected ", state.block[1 + i], ", which the text has, got ", report.tokens[i]);
}

/// `ns`: of the round; 0: not measured.
void RoundTasks::finish(const Emitted& emitted, uint64_t ns, double spent) {
  const uint64_t now = steady_ns();
  if (ns == 0) ns = now - state.round_begin_ns;
  // A token that ends the text is the round's own even if it was drafted: every round emits 1 + accepted tokens.
  const RoundOutcome outcome{
      .num_drafts = state.input.num_tokens - 1,
      .num_accepted = emitted.num_tokens ? emitted.num_tokens - 1 : 0,
      .num_context_rows = state.input.num_context_rows,
      .ns = ns,
      .is_cut = emitted.end == RoundEnd::bad_logits || emitted.last_was_drafted,
      .scores = {&state.scores_[1], state.narrows_ || state.request.lookup ? state.input.num_tokens - 1 : 0},
      .had_drafts = state.request.lookup ? state.num_found_ != 0 : !state.is_shared,
      .spent = spent};
  if (state.request.rounds)
    state.request.rounds->push_back({ns, state.input.num_tokens, outcome.num_proposed(), emitted.num_tokens});
  state.width.observe(outcome);
  state.round_begin_ns = now;
  state.position += emitted.num_tokens;
  state.num_context += state.input.num_context_rows;
  if (emitted.num_tokens) state.block[0] = emitted.last;
  ++state.num_rounds;
  state.num_rows += state.input.num_tokens;
  state.end = emitted.end == RoundEnd::running ? state.limit_reached() : emitted.end;
  state.prepare_round();
}

/// Draws row after row while the drafts are confirmed.
Emitted RoundTasks::emit_rows(const TargetRows& rows) {
  Emitted emitted;
  SampleResult token;
  bool confirmed = true;
  for (uint32_t row = 0; confirmed && emitted.end == RoundEnd::running; ++row) {
    confirmed = draw_row(row, rows, token);
    if (token.token_id < 0) {
      emitted.end = RoundEnd::bad_logits;
    } else {
      emit(token, emitted);
      emitted.last_was_drafted = confirmed;
    }
  }
  return emitted;
}

/// Returns whether the next row holds the token drawn.
bool RoundTasks::draw_row(uint32_t row, const TargetRows& rows, SampleResult& token) {
  const uint32_t next = row + 1;
  const bool has_draft = next < state.input.num_tokens;
  if (rows.drawn) {
    token = rows.drawn[row];
    return has_draft && token.token_id == state.block[next];
  }
  SampleRequest request = row_request(state, row, state.num_output);
  request.scratch = state.scratch(0);
  const LogitRow logits =
      rows.best ? rows.best[row] : LogitRow{rows.logits + uint64_t{row} * rows.stride, state.vocab_size_};
  if (has_draft && state.draws_drafts())
    return verify_draft(logits, request, next, state.proposals_[next], token);
  sample_token(logits, request, token);
  return has_draft && token.token_id == state.block[next];
}

void RoundTasks::emit(const SampleResult& token, Emitted& emitted) {
  const RoundRequest& asked = state.request;
  ++state.num_output;
  ++emitted.num_tokens;
  emitted.last = token.token_id;
  if (asked.token_counts) ++asked.token_counts[token.token_id];
  if (asked.lookup) asked.lookup->append({&token.token_id, 1});
  if (std::binary_search(asked.stop_ids.begin(), asked.stop_ids.end(), token.token_id))
    emitted.end = RoundEnd::stop_id;
  else if (state.num_output >= asked.max_tokens)
    emitted.end = RoundEnd::max_tokens;
  state.ring.push(token);
}

void propose_token(RoundState& state, uint32_t row, const LogitRow& draft_logits) {
  RoundTasks{state}.propose(row, draft_logits);
}

void replay_round(RoundState& state, const RoundReport& report) { RoundTasks{state}.replay(report); }

void accept_round(RoundState& state, const TargetRows& rows) { RoundTasks{state}.accept(rows); }

void accept_drawn(RoundState& state, std::span<const SampleResult> drawn, double spent) {
  state.input.num_tokens = static_cast<uint32_t>(drawn.size());
  RoundTasks{state}.accept({.logits = nullptr, .stride = 0, .drawn = drawn.data()}, spent);
}

}  // namespace mimo_rt
