// Small models with a draft, and a driver that feeds one sequence to an executor in steps and in rounds.
#pragma once

#include "engine/round.h"
#include "step_fixture.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace fixture {

struct DraftStyle {
  std::string name;
  ModelConfig config;
  DraftConfig draft;
};

/// MiMo's dialect, Qwen3's, one that bends what both have in common, and one that knows part of the vocabulary.
inline std::vector<DraftStyle> draft_styles(uint32_t block_size) {
  std::vector<DraftStyle> styles;
  const ModelConfig quantised = small_quantised();
  DraftConfig mimo = test_configs::make_draft(quantised, {4, 2, 32, 16, 16}, 3, block_size, 20, {2, 0, 3});
  mimo.has_sink = true;
  mimo.value_scale = 0.612;
  styles.push_back({"mimo", quantised, mimo});

  const ModelConfig plain = test_configs::tiny_full_attention_no_sinks();
  styles.push_back({"qwen3", plain, test_configs::make_draft(plain, {4, 4, 16, 32, 16}, 2, block_size, 0, {0, 2})});

  const ModelConfig ragged = test_configs::tiny_ragged_tied();
  DraftConfig bent = test_configs::make_draft(ragged, {3, 1, 16, 48, 0}, 2, block_size, 3, {0});
  bent.has_qk_norm = false;
  bent.intermediate_size = 56;
  bent.window_tokens[1] = 0;
  styles.push_back({"bent", ragged, bent});

  DraftConfig part = mimo;  // of the vocabulary, and not whole groups of rows
  part.vocab_size = quantised.vocab_size;
  part.draft_vocab_size = quantised.vocab_size / 3;
  styles.push_back({"part", quantised, part});
  return styles;
}

struct DraftModel {
  explicit DraftModel(const DraftStyle& given)
      : style(given),
        weights(Weights::synthetic(style.config, 5)),
        draft(DraftWeights::synthetic(style.draft, 6)) {
    draft.bind(weights);
  }
  DraftModel(const DraftStyle& given, Weights&& target, DraftWeights&& drafts)
      : style(given), weights(std::move(target)), draft(std::move(drafts)) {
    draft.bind(weights);
  }
  DraftStyle style;
  Weights weights;
  DraftWeights draft;
};

inline int32_t argmax(const float* logits, uint32_t count) {
  return static_cast<int32_t>(std::max_element(logits, logits + count) - logits);
}

struct DraftRunOptions {
  std::string backend = "ref";
  bool exact = false;
  uint32_t num_workers = 2;
  uint32_t chunk = 8;  ///< rows of a step, of context and of tokens
  uint32_t max_context = 256;
  uint32_t seq_idx = 0;
  uint32_t timeout_ms = 10'000;
  PlanOptions::FuseNorm fuse_norm = PlanOptions::FuseNorm::automatic;
  DraftOptions draft = {.mode = DraftOptions::Mode::fixed};
  SamplingParams params = {.temperature = 0.0f};
  std::function<Plan(const Plan&)> change_step_plan = {}, change_round_plan = {};
  /// Of a device instead, for plans as it gets them.
  std::function<std::unique_ptr<Executor>(const std::vector<const Plan*>&, const ExecutorOptions&)> make_executor = {};
};

/// One sequence, its cache and an executor of its own.
class DraftRun {
 public:
  DraftRun(const Weights& weights, const DraftWeights& draft, const DraftRunOptions& options)
      : config(weights.config()),
        draft_config(draft.config()),
        step_plan(build(options, false)),
        round_plan(build(options, true)),
        cache(config,
              {.max_context = options.max_context,
               .max_step_tokens = std::max(options.chunk, draft_config.block_size),
               .num_seqs = options.seq_idx + 1},
              &draft_config),
        width(options.draft, draft_config.block_size),
        seq(options.seq_idx),
        chunk(options.chunk) {
    ExecutorOptions executor_options;
    executor_options.num_workers = options.num_workers;
    executor_options.timeout_ms = options.timeout_ms;
    const std::vector<const Plan*> plans = {&step_plan, &round_plan};
    executor = options.make_executor ? options.make_executor(plans, executor_options)
               : options.backend == "ref"
                   ? make_ref_executor(weights, &draft, plans, executor_options, options.exact)
                   : make_cpu_executor(weights, &draft, plans, options.backend, executor_options);
    cache.reserve(seq, options.max_context);
    params = options.params;
    RoundRequest request;
    request.params = &params;
    request.proposal = options.draft.proposal;
    request.max_tokens = 1u << 20;
    request.max_context = options.max_context;
    request.max_context_rows = options.chunk;
    width.begin(request.max_tokens, {});
    state = std::make_unique<RoundState>(request, width, config.vocab_size, draft_config.block_size);
    state->seq_idx.fill(seq);
  }

  /// Steps over the tokens from `size` on; the context of each is what the steps before captured. Returns the greedy
  /// token after the last.
  int32_t feed(const std::vector<int32_t>& tokens) {
    int32_t next = -1;
    for (uint32_t begin = size; begin < tokens.size(); begin = size) {
      const uint32_t end = std::min(begin + chunk, static_cast<uint32_t>(tokens.size()));
      StepRows rows(tokens, seq, begin, end);
      rows.input.context_begin = num_context;
      rows.input.num_context_rows = begin - num_context;
      StepOutput output;
      executor->run(step_plan, cache, rows.input, output);
      for (uint32_t r = 0; r < end - begin; ++r) {
        const float* row = output.logits + uint64_t{r} * output.logits_stride;
        logits.insert(logits.end(), row, row + config.vocab_size);
      }
      next = argmax(logits.data() + logits.size() - config.vocab_size, config.vocab_size);
      num_context = begin;
      size = end;
    }
    return next;
  }

  /// Plain decoding: `count` greedy tokens after `anchor`, one step each.
  std::vector<int32_t> decode_steps(std::vector<int32_t> tokens, int32_t anchor, uint32_t count) {
    std::vector<int32_t> made;
    for (uint32_t i = 0; i < count; ++i) {
      tokens.push_back(anchor);
      made.push_back(anchor = feed(tokens));
    }
    return made;
  }

  /// Rounds that continue from the anchor until `count` tokens are out, or fewer when state->end says why.
  std::vector<int32_t> decode_rounds(int32_t anchor, uint32_t count) {
    begin_rounds(anchor);
    state->request.max_tokens = state->num_output + count;
    state->begin();
    run_rounds();
    return std::move(tokens_out);
  }

  void begin_rounds(int32_t anchor) {
    state->block[0] = anchor;
    state->position = size;
    state->num_context = num_context;
    state->num_output = 1;
    num_read = state->ring.num_pushed();
    tokens_out.clear();
  }

  void run_rounds() {
    executor->run_rounds(round_plan, cache, *state, [this] { poll(); });
    settle();
  }

  void poll() {
    while (num_read < state->ring.num_pushed()) {
      tokens_out.push_back(state->ring[num_read].token_id);
      state->ring.release(++num_read);
    }
  }

  void settle() {
    size = state->position;
    num_context = state->num_context;
  }

  std::vector<float> draft_logits() const {
    const uint32_t stride = round_plan.buffers()[kDraftLogits].cols;
    const auto* rows = reinterpret_cast<const float*>(executor->buffer_data(round_plan, kDraftLogits));
    std::vector<float> out;
    for (uint32_t r = 0; r + 1 < draft_config.block_size; ++r)
      out.insert(out.end(), rows + r * stride, rows + r * stride + round_plan.shape().draft.vocab_size);
    return out;
  }

  /// Keys and values of one layer at positions [begin, end), those of the draft's layers after the target's.
  std::vector<uint16_t> kv(uint32_t layer, uint32_t begin, uint32_t end) {
    const bool is_draft = layer >= config.num_layers;
    const LayerConfig* target = is_draft ? nullptr : &config.layers[layer];
    const uint32_t num_heads = is_draft ? draft_config.num_kv_heads : target->num_kv_heads;
    const uint32_t qk = is_draft ? draft_config.qk_head_dim : target->qk_head_dim;
    const uint32_t vd = is_draft ? draft_config.v_head_dim : target->v_head_dim;
    std::vector<uint16_t> out;
    for (uint32_t pos = begin; pos < end; ++pos)
      for (uint32_t head = 0; head < num_heads; ++head) {
        const uint16_t* k = cache.k_row(layer, seq, head, pos);
        const uint16_t* v = cache.v_row(layer, seq, head, pos);
        out.insert(out.end(), k, k + qk);
        out.insert(out.end(), v, v + vd);
      }
    return out;
  }

  std::vector<uint16_t> features(uint32_t begin, uint32_t end) {
    std::vector<uint16_t> out;
    for (uint32_t pos = begin; pos < end; ++pos) {
      const uint16_t* row = cache.feature_row(seq, pos);
      out.insert(out.end(), row, row + draft_config.target_layer_ids.size() * config.hidden_size);
    }
    return out;
  }

  const ModelConfig& config;
  const DraftConfig& draft_config;
  Plan step_plan, round_plan;
  KvCache cache;
  DraftWidth width;
  SamplingParams params;
  std::unique_ptr<Executor> executor;
  std::unique_ptr<RoundState> state;
  uint32_t size = 0, num_context = 0;  ///< positions with target and with draft keys and values
  uint32_t seq, chunk;
  std::vector<float> logits;           ///< of all steps, [tokens, vocab]
  std::vector<int32_t> tokens_out;
  uint64_t num_read = 0;

 private:
  Plan build(const DraftRunOptions& options, bool is_round) const {
    const uint32_t rows = is_round ? draft_config.block_size : options.chunk;
    PlanOptions plan = options.make_executor ? device_plan_options(options.num_workers, rows, rows)
                                             : plan_options(options.num_workers, rows, rows, options.fuse_norm);
    plan.sample_by_all |= options.num_workers == 3;  // on CPUs share 0 does all
    plan.max_context_rows = options.chunk;
    plan.is_round = is_round;
    const Plan whole = Plan::build(config, plan, &draft_config);
    const auto& change = is_round ? options.change_round_plan : options.change_step_plan;
    return change ? change(whole) : whole;
  }
};

}  // namespace fixture
