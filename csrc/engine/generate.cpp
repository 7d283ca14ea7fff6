// Prompt in, tokens out: prefill in chunks, then one step per token, or rounds when the engine has a plan for them.
#include "core/checks.h"
#include "engine/generation_clock.h"
#include "engine/session_impl.h"
#include "engine/step_batch.h"
#include "engine/stop_text.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <mutex>
#include <utility>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Session.generate";

std::vector<int32_t> collect_stop_ids(const ModelConfig& config, const GenerateOptions& options) {
  std::vector<int32_t> ids = options.stop_token_ids;
  if (!options.ignore_eos)
    for (const int32_t id : config.eos_token_ids)
      if (id >= 0 && static_cast<uint32_t>(id) < config.vocab_size) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

/// Adds to a count, and takes it back.
class CountInScope {
 public:
  explicit CountInScope(std::atomic<uint32_t>& count, uint32_t change = 1) : count_(count), change_(change) { count_ += change_; }
  CountInScope(const CountInScope&) = delete;
  CountInScope& operator=(const CountInScope&) = delete;
  ~CountInScope() { count_ -= change_; }

 private:
  std::atomic<uint32_t>& count_;
  uint32_t change_;  // may wrap around
};

/// One generation. The session's sequence holds the prompt and all output but the last token
/// whenever the callback runs, so it stays usable when the callback throws.
class Generation {
 public:
  Generation(SessionState& session, std::span<const int32_t> prompt,
             const GenerateOptions& options, const TokenCallback& on_token)
      : session_(session),
        engine_(session.engine->impl()),
        prompt_(prompt),
        options_(options),
        on_token_(on_token),
        stop_ids_(collect_stop_ids(engine_.config, options)),
        text_(options.stop, options.include_stop_str_in_output) {
    const auto room = static_cast<uint32_t>(session.sequence.cache().max_context() - prompt.size());
    limit_ = options.max_tokens ? std::min(options.max_tokens, room) : room;
    MIMO_RT_CHECK(!options.min_tokens || stop_ids_.size() < engine_.config.vocab_size,
                  invalid_argument, kWhere, "stop_token_ids: expected fewer than all ",
                  engine_.config.vocab_size, " tokens when min_tokens is set");
    prepare_sampling();
  }

  GenerateResult run() {
    prefill();
    if (!finished_) {
      count_for_penalty(sampled_.token_id);
      accept(sampled_);
    }
    if (!finished_) decode();
    result_.text = text_.release_text();
    const DraftStats draft = result_.stats.draft;
    result_.stats = clock_.finish(prompt_.size(), num_reused_, engine_.bandwidth_gbs);
    result_.stats.draft = draft;
    return std::move(result_);
  }

 private:
  void prepare_sampling() {
    const uint32_t vocab_size = engine_.config.vocab_size;
    const uint64_t unit = sizeof(std::max_align_t);
    session_.sample_scratch.resize((sampler_scratch_bytes(vocab_size) + unit - 1) / unit);
    request_.params = &options_.sampling;
    request_.sequence_id = session_.sequence_id;
    request_.scratch = session_.sample_scratch.data();
    if (options_.sampling.repetition_penalty == 1.0f) return;
    session_.token_counts.assign(vocab_size, 0);
    for (const int32_t id : prompt_) ++session_.token_counts[static_cast<size_t>(id)];
    request_.token_counts = session_.token_counts.data();
  }

  /// Runs what of the prompt is not cached; the last token always, for its logits.
  void prefill() {
    const auto last = static_cast<uint32_t>(prompt_.size() - 1);
    session_.sequence.keep_common_prefix(prompt_, last);
    num_reused_ = session_.sequence.size();
    std::span<const int32_t> rest = prompt_.subspan(num_reused_);
    while (!rest.empty() && !finished_ && !stop_when_cancelled()) {
      const size_t most = engine_.prompt_pace.max_rows(engine_.max_step_tokens(), engine_.num_decoding);
      const size_t count = std::min(rest.size(), most);
      step(rest.first(count), count == rest.size());
      rest = rest.subspan(count);
    }
  }

  void decode() {
    num_decoding_ = 1;
    num_sharing_ = !engine_.draft || options_.draft.mode != DraftOptions::Mode::fixed;
    const CountInScope decoding(engine_.num_decoding, num_decoding_), sharing(engine_.num_sharing, num_sharing_);
    if (engine_.round_plan) return decode_rounds();
    while (!finished_ && !stop_when_cancelled()) decode_step();
  }

  void decode_step() {
    const int32_t token_id = result_.token_ids.back();
    step({&token_id, 1}, true);
    if (finished_) return;
    count_for_penalty(sampled_.token_id);
    accept(sampled_);
  }

  /// Rounds count the tokens that they draw.
  void count_for_penalty(int32_t token_id) {
    if (request_.token_counts) ++session_.token_counts[static_cast<size_t>(token_id)];
  }

  void decode_rounds() {
    const uint32_t block_size = engine_.block_size();
    DraftLearning::Loan drafting(engine_.draft_learning, options_.draft, block_size, engine_.draft_source(), limit_);
    if (engine_.has_lookup) begin_lookup();
    RoundState state(round_request(), drafting.width, engine_.config.vocab_size, block_size);
    while (!finished_ && !stop_when_cancelled()) {
      state.is_shared = shares_round(drafting.width);
      if (state.is_shared) run_shared_round(state);
      else run_rounds(state);
    }
    if (block_size == 1) return;
    result_.stats.draft = drafting.width.stats();
    clock_.count_drafts(engine_.weight_bytes, result_.stats.draft.num_drafted_rounds);
  }

  bool shares_round(DraftWidth& width) const {
    const uint32_t num_sharing = engine_.num_sharing;
    if (!engine_.joins_steps() || num_sharing <= 1) return false;
    if (!engine_.draft) return true;
    // More than a step makes for one of several; without drafts a round makes as much of it.
    if (session_.sequence.num_pending_context() > engine_.round_plan->options().max_context_rows) return false;
    if (options_.draft.mode != DraftOptions::Mode::adaptive) return options_.draft.mode == DraftOptions::Mode::off;
    return width.shares_round(num_sharing, engine_.joint_steps.step_ns(num_sharing));
  }

  void begin_lookup() {
    if (!session_.lookup) session_.lookup.emplace(engine_.config.vocab_size);
    session_.lookup->clear();
    session_.lookup->reserve(static_cast<uint32_t>(prompt_.size()) + limit_);
    session_.lookup->append(prompt_);
  }

  void continue_text(RoundState& state) {
    state.block[0] = result_.token_ids.back();
    state.num_output = result_.token_ids.size();
    if (!engine_.has_lookup) return;
    const size_t num_known = session_.lookup->size() - prompt_.size();  // the first token is of no round
    session_.lookup->append(std::span(result_.token_ids).subspan(num_known));
  }

  RoundRequest round_request() {
    RoundRequest request;
    request.params = &options_.sampling;
    request.sequence_id = session_.sequence_id;
    if (request_.token_counts) request.token_counts = session_.token_counts.data();
    request.stop_ids = stop_ids_;
    request.min_tokens = options_.min_tokens;
    request.max_tokens = limit_;
    request.max_context = session_.sequence.cache().max_context();
    request.max_context_rows = engine_.round_plan->options().max_context_rows;
    request.proposal = options_.draft.proposal;
    if (options_.want_rounds) {
      result_.rounds.reserve(limit_);  // nothing is allocated between two rounds
      request.rounds = &result_.rounds;
    }
    if (engine_.has_lookup) request.lookup = &*session_.lookup;
    request.cancelled = &session_.cancelled;
    return request;
  }

  /// Rounds until the generation ends or another session wants the engine. Only one at a time when
  /// the host may end the generation at any token: nothing runs past a stop, and the caller's code
  /// never runs while this session holds the engine. A GPU waits for the next one, or serves another
  /// session meanwhile.
  void run_rounds(RoundState& state) {
    std::vector<SampleResult> drawn;
    const bool host_may_stop = on_token_ || !options_.stop.empty();
    state.max_rounds = host_may_stop ? 1 : ~0u;
    state.comes_back = host_may_stop;
    continue_text(state);
    const auto on_token = [&](const SampleResult& token) {
      if (host_may_stop) drawn.push_back(token);
      else accept(token);
      return !finished_;
    };
    {
      const std::lock_guard lock(engine_.steps);
      if (session_.cancelled) return;  // while it waited for the engine
      session_.sequence.run_rounds(engine_, state, on_token);
    }
    end_rounds(state, drawn);
  }

  /// One round as a step that others may share, who together choose how many drafts of the text it verifies.
  void run_shared_round(RoundState& state) {
    const uint32_t begin = session_.sequence.size();
    continue_text(state);
    state.max_rounds = 1;
    state.position = begin;
    state.begin();
    if (state.end != RoundEnd::running) return;  // cancelled
    std::array<SampleRequest, kMaxBlockSize> samples;
    std::array<SampleResult, kMaxBlockSize> drawn;
    state.fill_requests(samples);
    StepOutput output;
    output.sampled = drawn.data();
    const std::span tokens = std::span(state.block).first(state.input.num_tokens);
    StepRequest step{&session_.sequence, tokens, std::span(state.logit_rows).first(tokens.size()), samples.data(), &output};
    JointRequest request{step, state.offer};
    if (!engine_.joint_steps.run(engine_, request, session_.cancelled)) return;
    accept_drawn(state, std::span(drawn).first(step.tokens.size()), request.spent);
    state.count_experts(output.active_experts, 1);
    state.ring.release(state.ring.num_pushed());  // they are in `drawn`
    session_.sequence.keep_first(state.position);
    end_rounds(state, std::span(drawn).first(state.position - begin));
  }

  /// Shows the tokens that were held back.
  void end_rounds(RoundState& state, std::span<const SampleResult> drawn) {
    clock_.count_rounds(engine_.weight_bytes, state.num_rounds, state.active_experts);
    uint32_t num_shown = 0;
    while (num_shown < drawn.size() && !finished_) accept(drawn[num_shown++]);
    if (num_shown < drawn.size()) state.cut_last_round(num_shown);
    if (state.end == RoundEnd::bad_logits) {
      if (!finished_) fail_bad_logits(state.position);
      session_.sequence.keep_common_prefix({}, 0);  // behind the end of the text, but cached
    }
    const bool may_go_on = state.end == RoundEnd::requested || state.end == RoundEnd::max_rounds;
    MIMO_RT_CHECK(finished_ || may_go_on, internal, kWhere, "the rounds ended (",
                  static_cast<int>(state.end), ") and the generation did not");
  }

  /// Finishes the generation instead when it was cancelled while it waited for the engine.
  void step(std::span<const int32_t> tokens, bool want_token) {
    const auto last_row = static_cast<uint32_t>(tokens.size() - 1);
    const bool may_stop = result_.token_ids.size() >= options_.min_tokens;
    request_.position = static_cast<uint32_t>(session_.sequence.size() + tokens.size());
    request_.masked_ids = stop_ids_.data();
    request_.num_masked_ids = may_stop ? 0 : static_cast<uint32_t>(stop_ids_.size());
    StepOutput output;
    output.sampled = &sampled_;
    StepRequest request{&session_.sequence, tokens, {&last_row, want_token ? 1u : 0u},
                        want_token ? &request_ : nullptr, &output};
    if (!run(request)) {  // cancelled while it waited for the engine
      stop_when_cancelled();
      return;
    }
    if (!result_.token_ids.empty()) clock_.count_step(engine_.weight_bytes, output.active_experts);
    if (want_token && sampled_.token_id < 0) fail_bad_logits(request_.position - 1);
  }

  /// False: not run, because the session was cancelled.
  bool run(StepRequest& request) {
    if (request.tokens.size() == 1 && request.sample && engine_.joins_steps()) {
      JointRequest joint{request};
      return engine_.joint_steps.run(engine_, joint, session_.cancelled);
    }
    const std::lock_guard lock(engine_.steps);
    if (session_.cancelled) return false;
    const auto begin = std::chrono::steady_clock::now();
    run_step(engine_, {&request, 1});
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - begin;
    engine_.prompt_pace.add(static_cast<uint32_t>(request.tokens.size()), time.count());
    return true;
  }

  [[noreturn]] void fail_bad_logits(uint32_t position) {
    session_.sequence.keep_common_prefix({}, 0);  // keys and values are just as broken
    fail(ErrorCode::internal, kWhere, "logits of position ", position,
         ": expected a finite value, got only NaN or infinity. Check the weights.");
  }

  void accept(const SampleResult& token) {
    const int32_t token_id = token.token_id;
    clock_.count_token();
    result_.token_ids.push_back(token_id);
    record_logprobs(token);
    const bool is_stop = std::binary_search(stop_ids_.begin(), stop_ids_.end(), token_id);
    const bool in_text = !is_stop || options_.include_stop_str_in_output;
    if (in_text && session_.vocabulary &&
        !text_.push(session_.vocabulary->bytes(token_id),
                    !is_stop && result_.token_ids.size() > options_.min_tokens)) {
      result_.stop_string = options_.stop[static_cast<size_t>(text_.stop_idx())];
      finish(FinishReason::stop);
    }
    if (is_stop) {
      result_.stop_token_id = token_id;
      finish(FinishReason::stop);
    } else if (!finished_ && result_.token_ids.size() >= limit_) {
      finish(FinishReason::length);
    }
    if (!on_token_) return;
    const bool go_on = call_back({&token_id, 1});
    if (!go_on && !finished_) finish(FinishReason::abort);
  }

  /// Its reader may take any time; that long others decode as if alone.
  bool call_back(std::span<const int32_t> token_ids) {
    const CountInScope decoding(engine_.num_decoding, -num_decoding_), sharing(engine_.num_sharing, -num_sharing_);
    return on_token_({token_ids, text_.take_released()});
  }

  void record_logprobs(const SampleResult& token) {
    if (!options_.sampling.want_logprob && options_.sampling.num_logprobs == 0) return;
    result_.logprobs.push_back({{token.token_id, token.logprob},
                                {token.alternatives, token.alternatives + token.num_alternatives}});
  }

  /// Ends with FinishReason::abort when cancel() was called; the callback gets the text held back.
  bool stop_when_cancelled() {
    if (!session_.cancelled) return false;
    finish(FinishReason::abort);
    const std::string_view rest = text_.take_released();
    if (on_token_ && !rest.empty()) on_token_({{}, rest});
    return true;
  }

  void finish(FinishReason reason) {
    finished_ = true;
    result_.finish_reason = reason;
    text_.finish();
  }

  GenerationClock clock_;  // first member: the time of submission
  SessionState& session_;
  Engine::Impl& engine_;
  std::span<const int32_t> prompt_;
  const GenerateOptions& options_;
  const TokenCallback& on_token_;
  std::vector<int32_t> stop_ids_;  // ascending
  StopText text_;
  uint32_t limit_ = 0, num_reused_ = 0;
  SampleRequest request_;
  SampleResult sampled_;
  GenerateResult result_;
  uint32_t num_decoding_ = 0, num_sharing_ = 0;  ///< what the engine counts this one for
  bool finished_ = false;
};

}  // namespace

GenerateResult run_generation(SessionState& session, std::span<const int32_t> prompt,
                              const GenerateOptions& options, const TokenCallback& on_token) {
  // After a reset it has no memory on a GPU: that there is no more of it is not the error of others in its first step.
  session.sequence.prepare(*session.engine->impl().executor);
  return Generation(session, prompt, options, on_token).run();
}

}  // namespace mimo_rt
