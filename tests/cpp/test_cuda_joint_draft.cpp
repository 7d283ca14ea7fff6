// Steps that sequences with a DFlash draft share on a GPU: each captures features in its own cache, and the draft's
// context is made for the sequence that waits longest, with the bits of steps alone.
#include "device_draft_fixture.h"
#include "engine/cuda_engine.h"
#include "engine/engine_impl.h"
#include "engine/session_impl.h"
#include "engine/step_batch.h"

#include <mimo_rt/session.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>

using namespace mimo_rt;
using namespace fixture;

namespace {

using Tokens = std::vector<int32_t>;

const DeviceDraft& model() {
  static const DeviceDraft model(device_draft_config(device_config()));
  return model;
}

std::shared_ptr<Engine> open_engine(const std::shared_ptr<cuda::StepDevice>& device) {
  EngineOptions options;
  options.device = "cuda";
  options.num_threads = 2;
  options.prefill_chunk_tokens = 8;
  model().dir.write("config.json", to_json(model().config));
  return open_cuda_engine(*model().target.checkpoint, model().target.config, options, model().dir.path(), device);
}

struct Text {
  Text(const std::shared_ptr<Engine>& engine, uint32_t max_context, uint32_t num_tokens, uint32_t seed)
      : tokens(random_tokens(model().target.config, num_tokens + 20, seed)), state(engine, max_context, seed) {
    StepOutput output;
    for (uint32_t begin = 0; begin < num_tokens; begin = state.sequence.size())
      state.sequence.step(engine->impl(), std::span(tokens).subspan(begin, std::min(8u, num_tokens - begin)), {}, nullptr,
                          output);
  }
  std::span<const int32_t> next() const { return std::span(tokens).subspan(state.sequence.size(), 1); }
  uint32_t num_context() const { return state.sequence.size() - state.sequence.num_pending_context(); }

  Tokens tokens;
  SessionState state;
};

/// A token more of each, in one step, which makes the context of the first.
void step_together(Engine& engine, const std::vector<Text*>& texts) {
  std::vector<StepOutput> outputs(texts.size());
  std::vector<StepRequest> requests;
  for (size_t i = 0; i < texts.size(); ++i)
    requests.push_back({&texts[i]->state.sequence, texts[i]->next(), {}, nullptr, &outputs[i]});
  run_step(engine.impl(), requests);
}

struct Rows {
  const std::shared_ptr<cuda::StepDevice>& device;
  uint64_t num_equal = 0, num_compared = 0;

  void compare(const uint8_t* a, const uint8_t* b, uint64_t num_bytes) {
    std::vector<uint8_t> left(num_bytes), right(num_bytes);
    device->download(left.data(), a, num_bytes);
    device->download(right.data(), b, num_bytes);
    num_equal += left == right;
    ++num_compared;
  }
  /// Features of the last positions, and the draft's keys and values of all that both have.
  void compare(const Text& a, const Text& b) {
    auto &left = device_cache(a), &right = device_cache(b);
    const cuda::FeatureRing x = left.sequence(0).features, y = right.sequence(0).features;
    const uint32_t size = a.state.sequence.size(), ring_rows = std::min(x.ring_rows, y.ring_rows);
    for (uint32_t pos = size - std::min(size, ring_rows); pos < size; ++pos)
      compare(reinterpret_cast<const uint8_t*>(x.rows + uint64_t{x.row_idx(pos)} * x.width),
              reinterpret_cast<const uint8_t*>(y.rows + uint64_t{y.row_idx(pos)} * y.width), 2 * x.width);
    const DraftConfig& draft = model().config;
    for (uint32_t layer = 0; layer < draft.num_layers; ++layer)
      for (uint32_t head = 0; head < draft.num_kv_heads; ++head)
        for (uint32_t pos = 0; pos < std::min(a.num_context(), b.num_context()); ++pos)
          for (const bool is_value : {false, true}) {
            const auto row = [&](cuda::DeviceCache& cache) {
              return device_head_row(cache, model().target.config.num_layers + layer, 0, head, pos, is_value);
            };
            compare(row(left), row(right), 2 * (is_value ? draft.v_head_dim : draft.qk_head_dim));
          }
  }
  static cuda::DeviceCache& device_cache(const Text& text) {
    return static_cast<cuda::DeviceCache&>(*const_cast<KvCache&>(text.state.sequence.cache()).store());
  }
};

/// Drafts are drawn, so that what they are changes the tokens.
GenerateOptions options_of(uint32_t num_tokens, DraftOptions::Mode mode) {
  GenerateOptions options;
  options.sampling = {.temperature = 3.0f, .sample_top_k = 60, .seed = 5};
  options.max_tokens = num_tokens;
  options.ignore_eos = true;
  options.draft = {.mode = mode, .proposal = DraftOptions::Proposal::sampled};
  return options;
}

}  // namespace

TEST_CASE("features and context of sequences that share steps are those of steps alone, in caches of any size") {
  const auto device = open_test_device(1);
  const auto engine = open_engine(device);
  CHECK(engine->impl().joins_steps());
  // The rings of features are not all as long, and one is about to wrap where another would have done so; the cache that
  // steps work in is neither the first nor the last.
  const auto make = [&] {
    std::vector<std::unique_ptr<Text>> texts;
    texts.push_back(std::make_unique<Text>(engine, 40, 9, 1));
    texts.push_back(std::make_unique<Text>(engine, 128, 60, 2));
    texts.push_back(std::make_unique<Text>(engine, 56, 17, 3));
    return texts;
  };
  const auto together = make(), alone = make();
  std::vector<Text*> order;
  for (const auto& text : together) order.push_back(text.get());
  for (uint32_t turn = 0; turn < 15; ++turn) {
    std::ranges::rotate(order, order.begin() + 1);
    const auto pending = [](const Text* text) { return text->state.sequence.num_pending_context(); };
    std::iter_swap(order.begin(), std::ranges::max_element(order, {}, pending));
    step_together(*engine, order);
    for (const auto& text : alone) step_together(*engine, {text.get()});
  }
  Rows rows{device};
  for (uint32_t i = 0; i < 3; ++i) {
    CHECK(together[i]->num_context() > alone[i]->state.sequence.size() - 15);  // some of it made in shared steps
    rows.compare(*together[i], *alone[i]);
  }
  CHECK_EQ(rows.num_equal, rows.num_compared);
  Rows others{device};  // the comparison sees whose they are
  others.compare(*together[0], *alone[2]);
  CHECK(others.num_equal < others.num_compared / 2);
}

TEST_CASE("sessions with a draft share steps, and draft afterwards as if they had been alone") {
  constexpr uint32_t kCount = 3, kTokens = 12;
  const auto device = open_test_device();
  const auto engine = open_engine(device);
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<Tokens> texts;
  std::vector<GenerateResult> results(kCount);
  for (uint32_t i = 0; i < kCount; ++i) {
    sessions.push_back(std::make_unique<Session>(engine, SessionOptions{.max_context = 48 + 16 * i, .sequence_id = i}));
    texts.push_back(random_tokens(model().target.config, 5 + 4 * i, 30 + i));
  }
  std::vector<std::thread> threads;
  std::atomic<uint32_t> num_begun = 0;
#if !defined(MIMO_RT_TEST_ON_GPU)
  const uint64_t num_before = device->num_launches;
#endif
  for (uint32_t i = 0; i < kCount; ++i)
    threads.emplace_back([&, i] {
      bool has_begun = false;
      results[i] = sessions[i]->generate(texts[i], options_of(kTokens, DraftOptions::Mode::off), [&](const TokenEvent&) {
        if (!has_begun) ++num_begun;
        has_begun = true;
        while (num_begun < kCount) std::this_thread::yield();
        return true;
      });
    });
  for (std::thread& thread : threads) thread.join();
#if !defined(MIMO_RT_TEST_ON_GPU)
  CHECK(device->num_launches - num_before < 5 + 2 * kTokens);  // 3 * 11 tokens behind the first, most of them together
#endif
  for (uint32_t i = 0; i < kCount; ++i) {
    Session fresh(engine, {.max_context = 80, .sequence_id = i});
    CHECK(results[i].token_ids == fresh.generate(texts[i], options_of(kTokens, DraftOptions::Mode::off)).token_ids);
    texts[i].insert(texts[i].end(), results[i].token_ids.begin(), results[i].token_ids.end());
    const GenerateOptions drafting = options_of(8, DraftOptions::Mode::fixed);
    const GenerateResult result = sessions[i]->generate(texts[i], drafting);
    CHECK(result.stats.num_cached_tokens + 2 >= texts[i].size());
    Session other(engine, {.max_context = 80, .sequence_id = i});
    const GenerateResult expected = other.generate(texts[i], drafting);
    CHECK(result.token_ids == expected.token_ids);
    CHECK_EQ(result.stats.draft.num_rounds, expected.stats.draft.num_rounds);
    CHECK_EQ(result.stats.draft.num_accepted_tokens, expected.stats.draft.num_accepted_tokens);
  }
}

CHECK_MAIN()
