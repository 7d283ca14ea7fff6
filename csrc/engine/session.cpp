#include <mimo_rt/session.h>

#include "core/checks.h"
#include "engine/options_check.h"
#include "engine/session_impl.h"
#include "plan/buffers.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <numeric>
#include <utility>

namespace mimo_rt {
namespace {

constexpr uint32_t kDefaultContext = 8192;

uint32_t pick_max_context(const ModelConfig& config, uint32_t wanted) {
  const uint32_t limit = config.max_position_embeddings ? config.max_position_embeddings : ~0u;
  MIMO_RT_CHECK(wanted <= limit && wanted != 1, invalid_argument, "Session",
                "max_context: expected 0 or 2..", limit, " (max_position_embeddings), got ",
                wanted);
  return wanted ? wanted : std::min(limit, kDefaultContext);
}

/// Gives a vector its former size back when a call fails half-way.
class ResizeBack {
 public:
  explicit ResizeBack(std::vector<float>& values) : values_(values), size_(values.size()) {}
  ResizeBack(const ResizeBack&) = delete;
  ResizeBack& operator=(const ResizeBack&) = delete;
  ~ResizeBack() { values_.resize(size_); }
  void keep() { size_ = values_.size(); }

 private:
  std::vector<float>& values_;
  size_t size_;
};

/// What a session holds, unless it was moved from.
template <typename Pointer>
auto& live(const Pointer& impl, const char* where) {
  MIMO_RT_CHECK(impl, invalid_argument, where, "expected a session, got one that was moved from");
  return *impl;
}

/// One round that begins with `anchor`; what it accepts does not matter.
void draft_one_block(SessionState& session, int32_t anchor) {
  Engine::Impl& engine = session.engine->impl();
  const uint32_t block_size = engine.draft->block_size;
  const SamplingParams greedy{.temperature = 0.0f};
  RoundRequest request;
  request.params = &greedy;
  request.max_tokens = block_size;
  request.max_context = session.sequence.cache().max_context();
  request.max_context_rows = engine.round_plan->options().max_context_rows;
  DraftOptions fixed;
  fixed.mode = DraftOptions::Mode::fixed;
  DraftWidth width(fixed, block_size);
  RoundState state(request, width, engine.config.vocab_size, block_size);
  state.block[0] = anchor;
  state.max_rounds = 1;
  session.sequence.run_rounds(engine, state, [](const SampleResult&) { return true; });
}

}  // namespace

std::string_view finish_reason_name(FinishReason reason) noexcept {
  switch (reason) {
    case FinishReason::stop: return "stop";
    case FinishReason::length: return "length";
    case FinishReason::abort: return "abort";
  }
  return "unknown";
}

BusyGuard::BusyGuard(std::atomic<bool>& busy, const char* where) : busy_(busy) {
  MIMO_RT_CHECK(!busy_.exchange(true), invalid_argument, where,
                "expected an idle session, got one that is in use by another thread or by the "
                "generation whose callback this is");
}

Session::Session(std::shared_ptr<Engine> engine, const SessionOptions& options) {
  MIMO_RT_CHECK(engine, invalid_argument, "Session", "engine: expected an engine, got nullptr");
  const uint32_t max_context = pick_max_context(engine->config(), options.max_context);
  impl_ = std::make_unique<Impl>(std::move(engine), max_context, options.sequence_id);
}

Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

void Session::load_vocabulary(const std::filesystem::path& tokenizer_json) {
  constexpr const char* kWhere = "Session.load_vocabulary";
  Impl& impl = live(impl_, kWhere);
  const BusyGuard guard(impl.busy, kWhere);
  impl.vocabulary = Vocabulary::from_file(tokenizer_json);
}

GenerateResult Session::generate(std::span<const int32_t> prompt, const GenerateOptions& options,
                                 const TokenCallback& on_token) {
  constexpr const char* kWhere = "Session.generate";
  Impl& impl = live(impl_, kWhere);
  const BusyGuard guard(impl.busy, kWhere);
  impl.cancelled = false;
  const uint32_t vocab_size = impl.engine->config().vocab_size;
  check_generate_options(options, vocab_size, impl.vocabulary.has_value(),
                         impl.engine->draft_config());
  check_tokens(prompt, vocab_size, kWhere, "prompt");
  MIMO_RT_CHECK(prompt.size() < max_context(), capacity, kWhere, "prompt: expected at most ",
                max_context() - 1, " tokens, got ", prompt.size(),
                ". Raise SessionOptions.max_context.");
  return run_generation(impl, prompt, options, on_token);
}

void Session::logits(std::span<const int32_t> tokens, std::vector<float>& out,
                     uint32_t step_tokens) {
  constexpr const char* kWhere = "Session.logits";
  Impl& impl = live(impl_, kWhere);
  const BusyGuard guard(impl.busy, kWhere);
  impl.cancelled = false;
  Engine::Impl& engine = impl.engine->impl();
  const uint32_t vocab_size = engine.config.vocab_size;
  const uint32_t chunk_tokens = engine.options.prefill_chunk_tokens;
  MIMO_RT_CHECK(step_tokens <= chunk_tokens, invalid_argument, kWhere,
                "step_tokens: expected 0..", chunk_tokens, ", got ", step_tokens);
  check_tokens(tokens, vocab_size, kWhere, "tokens");
  MIMO_RT_CHECK(tokens.size() <= max_context(), capacity, kWhere, "tokens: expected at most ",
                max_context(), ", got ", tokens.size(), ". Raise SessionOptions.max_context.");
  const uint32_t rows_per_step = step_tokens ? step_tokens : std::min(chunk_tokens, engine.max_logit_rows);
  std::vector<uint32_t> rows(rows_per_step);
  std::iota(rows.begin(), rows.end(), 0u);
  out.reserve(out.size() + tokens.size() * vocab_size);
  ResizeBack restore(out);
  for (uint32_t done = 0; done < tokens.size();) {
    const uint32_t begin = done - done % rows_per_step;  // of a step, which runs again for its other rows of logits
    const auto step = tokens.subspan(begin, std::min<size_t>(tokens.size() - begin, rows_per_step));
    const size_t count = std::min<size_t>(begin + step.size() - done, engine.max_logit_rows);
    const std::lock_guard lock(engine.steps);  // the logits live until the next step of anybody
    MIMO_RT_CHECK(!impl.cancelled, cancelled, kWhere, "cancelled with ", tokens.size() - done, " tokens left");
    impl.sequence.keep_common_prefix(tokens.first(begin), begin);
    MIMO_RT_CHECK(impl.sequence.size() == begin, internal, kWhere, "expected ", begin, " tokens in the cache, got ",
                  impl.sequence.size());
    StepOutput output;
    impl.sequence.step(engine, step, std::span(rows).subspan(done - begin, count), nullptr, output);
    for (size_t row = 0; row < count; ++row) {
      const float* logits_of_row = output.logits + row * output.logits_stride;
      out.insert(out.end(), logits_of_row, logits_of_row + vocab_size);
    }
    done += static_cast<uint32_t>(count);
  }
  restore.keep();
}

void Session::draft_logits(std::span<const int32_t> tokens, std::vector<float>& out) {
  constexpr const char* kWhere = "Session.draft_logits";
  Impl& impl = live(impl_, kWhere);
  const BusyGuard guard(impl.busy, kWhere);
  impl.cancelled = false;
  Engine::Impl& engine = impl.engine->impl();
  const uint32_t vocab_size = engine.config.vocab_size;
  MIMO_RT_CHECK(engine.draft && !engine.options.exact, unavailable, kWhere,
                "expected a model with a draft and an engine that is not exact");
  check_tokens(tokens, vocab_size, kWhere, "tokens");
  MIMO_RT_CHECK(tokens.size() < max_context(), capacity, kWhere, "tokens: expected at most ",
                max_context() - 1, ", got ", tokens.size(), ". Raise SessionOptions.max_context.");
  impl.sequence.keep_common_prefix({}, 0);
  for (auto rest = tokens.first(tokens.size() - 1); !rest.empty();) {
    const size_t count = std::min<size_t>(rest.size(), engine.max_step_tokens());
    const std::lock_guard lock(engine.steps);
    MIMO_RT_CHECK(!impl.cancelled, cancelled, kWhere, "cancelled with ", rest.size(),
                  " tokens left");
    StepOutput output;
    impl.sequence.step(engine, rest.first(count), {}, nullptr, output);
    rest = rest.subspan(count);
  }
  const std::lock_guard lock(engine.steps);  // the logits live until the next round of anybody
  MIMO_RT_CHECK(!impl.cancelled, cancelled, kWhere, "cancelled before the block");
  draft_one_block(impl, tokens.back());
  const BufferInfo& buffer = engine.round_plan->buffers()[kDraftLogits];
  const auto* rows = reinterpret_cast<const float*>(
      engine.executor->buffer_data(*engine.round_plan, kDraftLogits));
  const uint32_t num_logits = engine.round_plan->shape().draft.vocab_size;
  for (uint32_t row = 0; row < buffer.rows; ++row, rows += buffer.cols) {
    const LogitRow logits{rows, num_logits, engine.draft_ids.empty() ? nullptr : engine.draft_ids.data()};
    const size_t begin = out.size();
    out.resize(begin + vocab_size, -std::numeric_limits<float>::infinity());
    for (uint32_t i = 0; i < num_logits; ++i) out[begin + logits.token_id(i)] = rows[i];
  }
}

void Session::cancel() noexcept {
  if (impl_) impl_->cancelled = true;
}

void Session::reset() {
  Impl& impl = live(impl_, "Session.reset");
  const BusyGuard guard(impl.busy, "Session.reset");
  impl.sequence.release();
  impl.lookup.reset();
}

uint32_t Session::num_cached_tokens() const {
  return live(impl_, "Session.num_cached_tokens").sequence.num_cached_tokens();
}
uint32_t Session::max_context() const {
  return live(impl_, "Session.max_context").sequence.cache().max_context();
}
uint64_t Session::kv_bytes() const {
  return live(impl_, "Session.kv_bytes").sequence.cache().bytes();
}

}  // namespace mimo_rt
