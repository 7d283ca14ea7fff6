// An engine on a fake executor whose logits are a hash of the tokens that it reads back from the KV
// cache: a stale, missing or misplaced row changes the tokens. The reference keeps no cache.
#pragma once

#include "check.h"
#include "engine/engine_impl.h"

#include <mimo_rt/session.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>

namespace fake_engine {

using namespace mimo_rt;
using Tokens = std::vector<int32_t>;

inline constexpr uint32_t kVocab = 64, kWindow = 8;
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

/// Layer 0 has a window, layer 1 is full; each row's key holds the token id.
class FakeExecutor : public Executor {
 public:
  std::function<void()> on_step;
  bool broken = false;               // all logits NaN
  std::vector<uint32_t> step_sizes;

  const std::string& backend_name() const override { return name_; }
  uint32_t num_workers() const override { return 1; }
  void set_tracing(bool) override {}
  std::vector<TaskTrace> last_trace() const override { return {}; }
  const uint8_t* buffer_data(const Plan&, uint16_t) const override { return nullptr; }

  void run(const Plan&, KvCache& cache, const StepInput& input, StepOutput& output) override {
    CHECK(!running_.exchange(true));  // one step at a time
    step_sizes.push_back(input.num_tokens);
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
    store(cache, input);
    logits_.clear();
    for (uint32_t r = 0; r < input.num_logit_rows; ++r) {
      std::vector<float> row = logits_of(cache, input.positions[input.logit_rows[r]]);
      if (broken) std::fill(row.begin(), row.end(), std::numeric_limits<float>::quiet_NaN());
      if (input.sample) sample_token(row.data(), kVocab, input.sample[r], output.sampled[r]);
      logits_.insert(logits_.end(), row.begin(), row.end());
    }
    output.logits = logits_.data();
    output.logits_stride = kVocab;
    output.active_experts = 3;
    running_ = false;
  }

 private:
  static void store(KvCache& cache, const StepInput& input) {
    for (uint32_t t = 0; t < input.num_tokens; ++t)
      for (uint32_t layer = 0; layer < 2; ++layer) {
        CHECK(input.positions[t] < cache.reserved_tokens(0));
        std::memcpy(cache.k_row(layer, 0, 0, input.positions[t]), &input.token_ids[t], 4);
      }
  }
  static std::vector<float> logits_of(KvCache& cache, uint32_t pos) {
    const auto read = [&](uint32_t layer, uint32_t begin) {
      Tokens ids;
      for (uint32_t p = begin; p <= pos; ++p)
        std::memcpy(&ids.emplace_back(), cache.k_row(layer, 0, 0, p), 4);
      return ids;
    };
    return model_logits(read(1, 0), read(0, pos + 1 > kWindow ? pos + 1 - kWindow : 0));
  }

  std::string name_ = "fake";
  std::vector<float> logits_;
  std::atomic<bool> running_ = false;
};

struct Fixture {
  std::shared_ptr<Engine> engine;
  FakeExecutor* executor;

  explicit Fixture(uint32_t chunk_tokens = 16, uint32_t decode_tokens = 4) {
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
    auto fake = std::make_unique<FakeExecutor>();
    executor = fake.get();
    impl->executor = std::move(fake);
    engine = Engine::Impl::assemble(std::move(impl));
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
    sample_token(logits.data(), kVocab, request, result);
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
/// special.
inline std::filesystem::path write_vocabulary() {
  const auto path = std::filesystem::temp_directory_path() / "mimo_rt_test_session_tokenizer.json";
  std::ofstream out(path);
  out << R"({"added_tokens":[{"id":62,"content":"<s>","special":true}],)"
      << R"("decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"Ġ":26,"Ã":27,"©":28)";
  for (int i = 0; i < 26; ++i) out << ",\"" << char('a' + i) << "\":" << i;
  out << "}}}";
  return path;
}


}  // namespace fake_engine
