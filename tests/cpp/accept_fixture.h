// A generation's rounds with an accept task of its own source under the emulated GPU, beside the host's.
#pragma once

#include "cuda/device/tasks/accept_round.cuh"
#include "cuda/round_mail.h"
#include "emulated_step_device.h"
#include "sampling_fixture.h"

#include <memory>

namespace fixture {

using namespace mimo_rt;

inline constexpr uint32_t kVocab = 1103, kLayers = 40, kRingRows = 24;  // three slices

inline void accept_round_kernel(cuda::AcceptRoundParams params) {
  cuda::accept_round(*reinterpret_cast<cuda::DrawShared*>(ptx::dynamic_shared_memory()), params, blockIdx.x, gridDim.x);
}

struct Generation {
  SamplingParams params;
  DraftOptions draft = {.mode = DraftOptions::Mode::fixed};
  uint32_t block_size = 8;
  std::vector<int32_t> stop_ids = {};
  uint64_t min_tokens = 0, max_tokens = 1000;
  uint32_t max_context = 1000, max_context_rows = 16, num_context = 30;
  float noise = 1.0f;  ///< of the draft
  bool has_part = false;  ///< the draft knows every third token
  uint32_t seed = 1;
  bool looks_up = false;  ///< there is no draft model
};

inline constexpr int32_t kAnchor = 5;
inline constexpr uint32_t kPosition = 30;  ///< of the anchor

/// That ends with the anchor, of the tokens that `looking_up` asks for.
inline std::vector<int32_t> first_text(uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> text(kPosition + 1, kAnchor);
  for (uint32_t i = 0; i < kPosition; ++i) text[i] = (const int32_t[]){5, 9, 11, 400}[random() % 4];
  return text;
}

/// The state of one generation on the host, as `Sequence` would begin it.
struct HostState {
  HostState(const Generation& g)
      : params(g.params), stop_ids(g.stop_ids),
        width(g.draft, g.block_size, g.looks_up ? DraftSource::ngram_lookup : DraftSource::model), counts(kVocab) {
    RoundRequest request;
    lookup.append(first_text(g.seed));
    if (g.looks_up) request.lookup = &lookup;
    request.params = &params;
    request.sequence_id = 7;
    request.token_counts = counts.data();
    request.stop_ids = stop_ids;
    request.min_tokens = g.min_tokens;
    request.max_tokens = g.max_tokens;
    request.max_context = g.max_context;
    request.max_context_rows = g.looks_up ? 0 : g.max_context_rows;
    request.proposal = g.draft.proposal;
    width.begin(request.max_tokens, {});
    state = std::make_unique<RoundState>(request, width, kVocab, g.block_size);
    state->position = kPosition;
    state->num_context = g.looks_up ? 0 : g.num_context;
    state->num_output = 1;
    state->block[0] = kAnchor;
    state->begin();
  }
  std::vector<int32_t> drain() {
    std::vector<int32_t> tokens;
    for (; num_read < state->ring.num_pushed(); state->ring.release(++num_read))
      tokens.push_back(state->ring[num_read].token_id);
    return tokens;
  }
  /// Tokens that `drain` would give.
  std::vector<int32_t> peek() const {
    std::vector<int32_t> tokens;
    for (uint64_t i = num_read; i < state->ring.num_pushed(); ++i) tokens.push_back(state->ring[i].token_id);
    return tokens;
  }
  SamplingParams params;
  std::vector<int32_t> stop_ids;
  DraftWidth width;
  std::vector<uint32_t> counts;
  NgramLookup lookup{kVocab};
  std::unique_ptr<RoundState> state;
  uint64_t num_read = 0;
};

/// Host and device run the same rounds; `mirror` only hears of the device's.
class Rounds {
 public:
  /// `text`: what the device is given to look up in.
  Rounds(const Generation& g, const std::vector<int32_t>& text)
      : g_(g),
        host(g),
        mirror(g),
        draws_(g.draft.proposal == DraftOptions::Proposal::sampled && g.params.temperature > 0.0f),
        random_(g.seed),
        draft_ids_(ids_of(g)),
        draft_(g.params, g.block_size - 1, static_cast<uint32_t>(draft_ids_.size()), Logits::normal, 0),
        target_(g.params, g.block_size, kVocab, Logits::normal, 0) {
    for (SampleCall* call : {&draft_, &target_}) {
      call->sequence_id = 7;
      call->counts.assign(kVocab, 0);
      call->masked.assign(g.stop_ids.begin(), g.stop_ids.end());
    }
    if (!draws_) draft_.params.temperature = 0.0f;
    for (uint32_t l = 0; l < kLayers; ++l) active_.push_back(l % 5);
    text_.assign(text.begin(), text.end());
    text_.resize((g.max_context + cuda::kTextAlignment) / cuda::kTextAlignment * cuda::kTextAlignment);
    std::copy(host.state->block.begin(), host.state->block.begin() + g.block_size, block_);
    take_step(host.state->input);
    make_table();
    mail.grant(cuda::kMaxLaunchRounds);
    mail.tell(*host.state);
  }

  explicit Rounds(const Generation& g) : Rounds(g, first_text(g.seed)) {}

  /// One round on both sides. @return its tokens, as the host has them
  std::vector<int32_t> run() {
    propose();
    const uint32_t num_rows = step_.num_tokens;
    run_emulated(cuda::sample_best_kernel, table_.sample, slice_options({}));
    const uint32_t num_shares = 1 + (g_.seed + num_rounds_++) % 4;
    uint32_t* const arrived = &arrived_[cuda::kMaxBlockTokens];
    run_emulated(accept_round_kernel, cuda::AcceptRoundParams{&table_, &step_, &rows_, arrived},
                 options_of({num_shares, g_.seed}, cuda::kComputeWarps * 32, sizeof(cuda::DrawShared)));
    for (const uint32_t count : arrived_) CHECK_EQ(count, 0u);
    accept_round(*host.state, {&target_.logits.at(0, 0), target_.logits.stride});
    const cuda::RoundRecord* record = mail.read();
    CHECK(record != nullptr && mail.read() == nullptr);
    CHECK_EQ(record->num_tokens, num_rows);
    CHECK_EQ(record->num_active_experts, 80u);
    CHECK_EQ(record->has_ended != 0 || is_told_to_stop, step_.is_over != 0);
    ns = record->ns;
    apply_record(*mirror.state, *record, nullptr, 0);
    if (is_compared) compare();
    device_tokens = mirror.drain();
    return host.drain();
  }
  /// Logits of the next round.
  void fill() {
    std::normal_distribution<float> normal;
    for (uint32_t row = 0; row < g_.block_size; ++row)
      for (uint32_t id = 0; id < kVocab; ++id) target_.logits.at(row, id) = 3.0f * normal(random_);
    for (uint32_t row = 0; row + 1 < g_.block_size; ++row)
      for (uint32_t i = 0; i < draft_ids_.size(); ++i)
        draft_.logits.at(row, i) = target_.logits.at(row, static_cast<uint32_t>(draft_ids_[i])) + g_.noise * normal(random_);
  }
  static std::vector<int32_t> ids_of(const Generation& g) {
    std::vector<int32_t> ids;
    for (int32_t id = g.has_part; id < static_cast<int32_t>(kVocab); id += g.has_part ? 3 : 1) ids.push_back(id);
    return ids;
  }
  void break_row(uint32_t row) {
    for (uint32_t id = 0; id < kVocab; ++id) target_.logits.at(row, id) = NAN;
  }
  void request_stop() {
    host.state->stop_requested = mirror.state->stop_requested = is_told_to_stop = true;
    mail.tell(*host.state);
  }

  const Generation g_;
  HostState host, mirror;
  cuda::RoundMail mail{std::make_shared<EmulatedStepDevice>(), 0};
  bool is_compared = true;  ///< with the host, after every round
  int32_t wrong_draft = 0;  ///< added to what the device takes for the first draft
  bool is_told_to_stop = false;
  std::vector<int32_t> device_tokens;  ///< of the last round
  uint64_t ns = 0;                     ///< that it took, as the device says

  cuda::RoundTables& table() { return table_; }
  uint32_t num_drafts() const { return step_.num_tokens - 1; }  ///< of the next round

 private:
  void take_step(const StepInput& input) {
    step_.num_tokens = step_.num_logit_rows = input.num_tokens;
    step_.num_draft_rows = input.num_draft_rows;
    step_.context_begin = input.context_begin;
    step_.num_context_rows = input.num_context_rows;
  }
  void make_table() {
    cuda::RoundTables& t = table_;
    t.sample = target_.kernel_params();
    t.sample.block = t.block = block_;
    t.sample.position = &t.token_position;
    t.sample.num_rows = step_.num_tokens;
    t.sample.num_masked_rows = static_cast<uint32_t>(g_.min_tokens - std::min<uint64_t>(g_.min_tokens, 1));
    if (draws_) t.sample.proposals = draft_.view();
    if (draws_ && g_.has_part) {
      t.sample.proposal_ids = draft_ids_.data();
      t.sample.num_proposal_ids = static_cast<uint32_t>(draft_ids_.size());
    }
    if (g_.looks_up) {
      t.text = text_.data();
    } else {
      t.draft = &draft_params_;
      step_.draft = &draft_tables_;
    }
    step_.kv[0].features.ring_rows = kRingRows;
    draft_tables_.context_ids = context_ids_;
    t.stop_ids = target_.masked.data();
    t.num_stop_ids = static_cast<uint32_t>(target_.masked.size());
    t.min_tokens = g_.min_tokens;
    t.max_tokens = g_.max_tokens;
    t.max_context = g_.max_context;
    t.max_context_rows = host.state->request.max_context_rows;
    t.block_size = g_.block_size;
    t.num_layers = kLayers;
    t.active_experts = active_.data();
    t.token_counts = target_.counts.data();
    t.positions = positions_;
    t.mailbox = mail.mailbox();
    t.num_output = 1;
    t.token_position = kPosition + 1;
    t.num_context = host.state->num_context;
    t.number = mail.next_number();
  }

  /// Both sides draft the same tokens.
  void propose() {
    RoundState& state = *host.state;
    if (step_.num_draft_rows == 0) return;
    draft_.counts = target_.counts;
    draft_.position[0] = table_.token_position;
    draft_.num_masked_rows = table_.sample.num_masked_rows;
    cuda::SampleParams params = draft_.kernel_params();
    params.role = cuda::SampleRole::draft;
    if (g_.has_part) params.ids = draft_ids_.data();
    fixture::run(params, {});
    for (uint32_t row = 1; row < g_.block_size; ++row) {
      propose_token(state, row, {draft_.row(row - 1), draft_.vocab_size, g_.has_part ? draft_ids_.data() : nullptr});
      block_[row] = draft_.tokens[row - 1];
      if (row < step_.num_tokens) CHECK_EQ(block_[row], state.block[row]);
    }
    block_[1] = static_cast<int32_t>((static_cast<uint32_t>(block_[1] + wrong_draft)) % kVocab);
  }

  void compare() {
    const RoundState &a = *host.state, &b = *mirror.state;
    CHECK(a.end == b.end);
    CHECK_EQ(a.position, b.position);
    CHECK_EQ(a.num_context, b.num_context);
    CHECK_EQ(a.num_output, b.num_output);
    CHECK_EQ(a.block[0], b.block[0]);
    CHECK(!std::memcmp(&host.width.stats(), &mirror.width.stats(), sizeof(DraftStats)));
    CHECK(host.counts == mirror.counts);
    CHECK(host.counts == std::vector<uint32_t>(target_.counts.begin(), target_.counts.end()));
    CHECK(mirror.peek() == host.peek());
    CHECK_EQ(step_.is_over != 0, a.end != RoundEnd::running);
    if (a.end != RoundEnd::running) return;
    CHECK_EQ(step_.num_tokens, a.input.num_tokens);
    CHECK_EQ(step_.num_logit_rows, a.input.num_logit_rows);
    CHECK_EQ(step_.num_draft_rows, a.input.num_draft_rows);
    CHECK_EQ(step_.context_begin, a.input.context_begin);
    CHECK_EQ(step_.num_context_rows, a.input.num_context_rows);
    CHECK_EQ(block_[0], a.block[0]);
    for (uint32_t row = 0; row < step_.num_tokens; ++row) CHECK_EQ(positions_[row], a.positions[row]);
    if (g_.looks_up) {
      CHECK(std::equal(block_, block_ + step_.num_tokens, a.block.begin()));
      CHECK(std::equal(host.lookup.token_ids().begin(), host.lookup.token_ids().end(), text_.begin()));
      return;
    }
    for (uint32_t i = 0; i < step_.num_context_rows; ++i)
      CHECK_EQ(context_ids_[i], (step_.context_begin + i) % kRingRows);
    CHECK_EQ(draft_params_.num_masked_rows, table_.sample.num_masked_rows);
  }

  const bool draws_;
  std::mt19937 random_;
  const std::vector<int32_t> draft_ids_;  ///< tokens of the draft's logits
  SampleCall draft_, target_;
  std::vector<uint32_t> active_;
  KernelVector<int32_t> text_;
  int32_t block_[cuda::kMaxBlockTokens] = {};
  uint32_t positions_[cuda::kMaxBlockTokens] = {};
  uint32_t context_ids_[16] = {};
  cuda::DraftTables draft_tables_;
  cuda::SampleParams draft_params_;
  cuda::StepTables step_;
  cuda::RoundTables table_;
  uint32_t arrived_[cuda::kMaxBlockTokens + 1] = {};
  const cuda::SampledRows rows_{&table_.sample, &table_.sample.num_rows, arrived_};
  uint32_t num_rounds_ = 0;
};

}  // namespace fixture
