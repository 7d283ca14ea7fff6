// An engine on a fake executor whose logits are a hash of the tokens that it reads back from the KV
// cache: a stale, missing or misplaced row changes the tokens. The reference keeps no cache.
//
// With a draft: features are token ids, too, and the fake draft knows the greedy token of three
// positions in four, but only while its context holds exactly the tokens before the block.
#pragma once

#include "check.h"
#include "engine/engine_impl.h"
#include "engine/round.h"
#include "safetensors_writer.h"

#include <mimo_rt/session.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>

namespace fake_engine {

using namespace mimo_rt;
using Tokens = std::vector<int32_t>;

inline constexpr uint32_t kVocab = 64, kWindow = 8;
inline constexpr uint32_t kBlock = 8, kDraftWindow = 24, kDraftLayer = 2;
inline constexpr int32_t kEos = 63;

inline uint64_t mix(uint64_t x) {  // splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

/// The model: logits after `history`, all of it and its last kWindow tokens once more.
inline std::vector<float> model_logits(const Tokens& history, const Tokens& window) {
  uint64_t hash = 1;
  for (const int32_t id : history) hash = mix(hash * 31 + uint64_t(id) + 1);
  for (const int32_t id : window) hash = mix(hash * 37 + uint64_t(id) + 1);
  std::vector<float> logits(kVocab);
  for (uint32_t i = 0; i < kVocab; ++i) logits[i] = float(mix(hash + i) % 4000) / 1000;
  return logits;
}

inline std::vector<float> model_logits(const Tokens& history) {
  const size_t begin = history.size() > kWindow ? history.size() - kWindow : 0;
  return model_logits(history, Tokens(history.begin() + long(begin), history.end()));
}

inline int32_t greedy_token(const Tokens& history) {
  const std::vector<float> logits = model_logits(history);
  return int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// Layer 0 has a window, layer 1 is full; each row's key holds the token id.
class FakeExecutor : public Executor {
 public:
  std::function<void()> on_step;
  bool broken = false;               // all logits NaN
  bool joins = false;                // takes rows of several sequences
  std::vector<uint32_t> step_sizes;
  uint32_t num_drawn = 0;            // rows of steps
  uint32_t num_joint_steps = 0, num_drafted_rounds = 0;

  bool joins_sequences() const override { return joins; }
  const std::string& backend_name() const override { return name_; }
  uint32_t num_workers() const override { return 1; }
  void set_tracing(bool) override {}
  std::vector<TaskTrace> last_trace() const override { return {}; }
  const uint8_t* buffer_data(const Plan&, uint16_t) const override { return nullptr; }

  void run(const Plan&, KvCache& cache, const StepInput& input, StepOutput& output) override {
    CHECK(!running_.exchange(true));  // one step at a time
    step_sizes.push_back(input.num_tokens);
    num_joint_steps += !cache.parts().empty();
    CHECK(input.num_tokens <= cache.max_step_tokens());
    if (on_step) {
      try {
        on_step();
      } catch (...) {
        store(cache, input);  // a step that fails half-way leaves rows behind
        running_ = false;
        throw;
      }
    }
    make_context(cache, input);
    store(cache, input);
    make_logits(cache, input);
    for (uint32_t r = 0; input.sample && r < input.num_logit_rows; ++r) {
      if (skips_row(input, r, output.sampled)) continue;
      sample_token({&logits_[r * kVocab], kVocab}, input.sample[r], output.sampled[r]);
      ++num_drawn;
    }
    output.logits = logits_.data();
    output.logits_stride = kVocab;
    output.active_experts = 3;
    running_ = false;
  }

  void run_rounds(const Plan&, KvCache& cache, RoundState& state,
                  const std::function<void()>& poll) override {
    CHECK(!running_.exchange(true));
    try {
      while (state.end == RoundEnd::running) {
        const StepInput& input = state.input;
        step_sizes.push_back(input.num_tokens);
        if (on_step) on_step();
        make_context(cache, input);
        draft(cache, state);
        store(cache, input);
        make_logits(cache, input);
        accept_round(state, {logits_.data(), kVocab});
        state.count_experts(3, 1);
        poll();
      }
    } catch (...) {
      running_ = false;
      throw;
    }
    running_ = false;
  }

 private:
  void make_logits(KvCache& cache, const StepInput& input) {
    logits_.clear();
    for (uint32_t r = 0; r < input.num_logit_rows; ++r) {
      const uint32_t t = input.logit_rows[r];
      std::vector<float> row = logits_of(cache, input.seq_idx[t], input.positions[t]);
      if (broken) std::fill(row.begin(), row.end(), std::numeric_limits<float>::quiet_NaN());
      logits_.insert(logits_.end(), row.begin(), row.end());
    }
  }

  static void make_context(KvCache& cache, const StepInput& input) {
    for (uint32_t i = 0; i < input.num_context_rows; ++i) {
      const uint32_t pos = input.context_begin + i;
      std::memcpy(cache.k_row(kDraftLayer, 0, 0, pos), cache.feature_row(0, pos), 4);
    }
  }

  void draft(KvCache& cache, RoundState& state) {
    if (!state.input.num_draft_rows) return;
    ++num_drafted_rounds;
    Tokens history;
    bool is_context_right = true;
    for (uint32_t pos = 0; pos < state.position; ++pos) {
      std::memcpy(&history.emplace_back(), cache.k_row(1, 0, 0, pos), 4);
      int32_t context = -1;
      std::memcpy(&context, cache.k_row(kDraftLayer, 0, 0, pos), 4);
      if (pos + kDraftWindow > state.position) is_context_right &= context == history.back();
    }
    for (uint32_t t = 1; t < state.input.num_tokens; ++t) {
      history.push_back(state.block[t - 1]);
      const bool is_right = is_context_right && mix(history.size()) % 4 != 0;
      state.block[t] = (greedy_token(history) + (is_right ? 0 : 1)) % int32_t(kVocab);
    }
  }

  static void store(KvCache& cache, const StepInput& input) {
    for (uint32_t t = 0; t < input.num_tokens; ++t) {
      const uint32_t seq = input.seq_idx[t], pos = input.positions[t];
      CHECK(pos < cache.reserved_tokens(seq));
      for (uint32_t layer = 0; layer < 2; ++layer)
        std::memcpy(cache.k_row(layer, seq, 0, pos), &input.token_ids[t], 4);
      if (cache.feature_rows()) std::memcpy(cache.feature_row(seq, pos), &input.token_ids[t], 4);
    }
  }
  static std::vector<float> logits_of(KvCache& cache, uint32_t seq, uint32_t pos) {
    const auto read = [&](uint32_t layer, uint32_t begin) {
      Tokens ids;
      for (uint32_t p = begin; p <= pos; ++p)
        std::memcpy(&ids.emplace_back(), cache.k_row(layer, seq, 0, p), 4);
      return ids;
    };
    return model_logits(read(1, 0), read(0, pos + 1 > kWindow ? pos + 1 - kWindow : 0));
  }

  std::string name_ = "fake";
  std::vector<float> logits_;
  std::atomic<bool> running_ = false;
};

enum class Drafts { none, model, lookup };

struct Fixture {
  std::shared_ptr<Engine> engine;
  FakeExecutor* executor;

  explicit Fixture(uint32_t chunk_tokens = 16, uint32_t decode_tokens = 4,
                   Drafts drafts = Drafts::none) {
    auto impl = std::make_unique<Engine::Impl>();
    impl->options.prefill_chunk_tokens = chunk_tokens;
    impl->options.max_decode_tokens = decode_tokens;
    impl->max_logit_rows = chunk_tokens;
    impl->config.num_layers = 2;
    impl->config.vocab_size = kVocab;
    impl->config.max_position_embeddings = 300;
    impl->config.eos_token_ids = {kEos};
    impl->config.layers.resize(2);
    for (LayerConfig& layer : impl->config.layers) {
      layer.num_q_heads = layer.num_kv_heads = 1;
      layer.qk_head_dim = layer.v_head_dim = 2;
    }
    impl->config.layers[0].window_tokens = kWindow;
    impl->weight_bytes = {.total = 5000, .dense_per_step = 1000, .per_expert = 10};
    if (drafts == Drafts::model) add_draft(*impl);
    if (drafts == Drafts::lookup) add_lookup(*impl);
    auto fake = std::make_unique<FakeExecutor>();
    executor = fake.get();
    impl->executor = std::move(fake);
    engine = Engine::Impl::assemble(std::move(impl));
  }

 private:
  static void add_draft(Engine::Impl& impl) {
    DraftConfig draft;
    draft.hidden_size = draft.intermediate_size = 16;
    draft.num_layers = draft.num_q_heads = draft.num_kv_heads = 1;
    draft.qk_head_dim = draft.v_head_dim = 16;
    draft.rms_norm_eps = 1e-5;
    draft.block_size = kBlock;
    draft.window_tokens = {kDraftWindow};
    draft.target_layer_ids = {1};
    impl.draft = draft;
    impl.draft_weights = std::make_unique<DraftWeights>(DraftWeights::synthetic(draft, 1));
    impl.weight_bytes.per_draft = 100;
    PlanOptions options;
    options.max_context_rows = std::max(impl.max_step_tokens(), kBlock);
    add_round_plan(impl, options, &draft);
  }
  static void add_lookup(Engine::Impl& impl) {
    impl.has_lookup = true;
    add_round_plan(impl, {}, nullptr);
  }
  static void add_round_plan(Engine::Impl& impl, PlanOptions options, const DraftConfig* draft) {
    impl.config.hidden_size = impl.config.intermediate_size = 16;
    options.is_round = true;
    options.max_tokens = options.max_logit_rows = kBlock;
    impl.round_plan = Plan::build(impl.config, options, draft);
  }
};

inline Tokens iota_tokens(uint32_t n, int32_t first = 0) {
  Tokens ids(n);
  for (uint32_t i = 0; i < n; ++i) ids[i] = int32_t((uint32_t(first) + i * 7) % 60);
  return ids;
}

inline GenerateOptions greedy(uint32_t max_tokens) {
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.max_tokens = max_tokens;
  options.ignore_eos = true;
  return options;
}

/// Generates with the model alone: no cache, no chunks.
inline Tokens reference(Tokens history, const GenerateOptions& options, uint64_t sequence_id = 0) {
  Tokens out;
  std::vector<uint64_t> scratch(sampler_scratch_bytes(kVocab) / 8);
  std::vector<uint32_t> counts(kVocab);
  for (const int32_t id : history) ++counts[size_t(id)];
  while (out.size() < options.max_tokens) {
    const std::vector<float> logits = model_logits(history);
    SampleRequest request{.params = &options.sampling, .token_counts = counts.data(),
                          .sequence_id = sequence_id, .scratch = scratch.data()};
    request.position = uint32_t(history.size());
    SampleResult result;
    sample_token({logits.data(), kVocab}, request, result);
    out.push_back(result.token_id);
    history.push_back(result.token_id);
    ++counts[size_t(result.token_id)];
  }
  return out;
}

inline Tokens operator+(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// A vocabulary of bytes: id i < 26 is a letter, 26 is a space, 27.. are the bytes of "é", 62 is
/// special. The file is there until the program ends.
inline std::filesystem::path write_vocabulary() {
  static const writer::TempDir directory;
  const auto path = directory.path() / "tokenizer.json";
  std::ofstream out(path);
  out << R"({"added_tokens":[{"id":62,"content":"<s>","special":true}],)"
      << R"("decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"Ġ":26,"Ã":27,"©":28)";
  for (int i = 0; i < 26; ++i) out << ",\"" << char('a' + i) << "\":" << i;
  out << "}}}";
  return path;
}

}  // namespace fake_engine
