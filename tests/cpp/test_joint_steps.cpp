// Sessions that share steps: who takes part, what each gets, and what a cancel or a failure leaves behind.
#include "fake_engine.h"
#include "step_fixture.h"

#include "engine/session_impl.h"
#include "engine/step_batch.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

using namespace fake_engine;

namespace {

GenerateOptions options_of(uint32_t i) {
  GenerateOptions options = greedy(12);
  options.sampling.temperature = i % 2 ? 1.0f : 0.0f;  // tokens of the best logit and drawn ones in one step
  options.sampling.seed = i;
  if (i % 3 == 2) options.sampling.repetition_penalty = 1.3f;
  return options;
}

/// Generations that all wait while the first step of another session runs.
struct Waiting {
  /// `one_token`: prompts of one token, whose first step may already be shared.
  Waiting(const Fixture& f, uint32_t count, bool one_token) : results(count), errors(count) {
    for (uint32_t i = 0; i < count; ++i) {
      sessions.push_back(std::make_unique<Session>(f.engine, SessionOptions{.sequence_id = i}));
      prompts.push_back(iota_tokens(one_token ? 1 : 5 + i, int32_t(i)));
    }
  }
  ~Waiting() { join(); }
  void start(StepQueue& queue) {
    for (uint32_t i = 0; i < sessions.size(); ++i) {
      threads.emplace_back([this, i] {
        try {
          results[i] = sessions[i]->generate(prompts[i], options_of(i));
        } catch (const std::exception& error) {
          errors[i] = error.what();
        }
      });
      while (queue.num_waiting() != i + 1) std::this_thread::yield();
    }
  }
  void join() {
    for (std::thread& thread : threads) thread.join();
    threads.clear();
  }
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<Tokens> prompts;
  std::vector<GenerateResult> results;
  std::vector<std::string> errors;
  std::vector<std::thread> threads;
};

/// Runs `waiting` behind the first step of a session of its own; `during` is called in that step, when all wait.
void run_behind(const Fixture& f, Waiting& waiting, const std::function<void()>& during = {}) {
  Session first(f.engine);
  StepQueue& queue = f.engine->impl().steps;
  f.executor->on_step = [&] {
    if (f.executor->step_sizes.size() != 1) return;
    waiting.start(queue);
    if (during) during();
  };
  first.generate(iota_tokens(9), greedy(1));
  waiting.join();
  f.executor->on_step = nullptr;
}

size_t count_steps_of(const Fixture& f, uint32_t num_rows) {
  return size_t(std::ranges::count(f.executor->step_sizes, num_rows));
}

}  // namespace

TEST_CASE("sessions that wait together decode together, and each gets what it gets alone") {
  for (const bool joins : {true, false}) {
    const Fixture f;
    f.executor->joins = joins;
    Waiting waiting(f, 3, true);
    run_behind(f, waiting);
    for (uint32_t i = 0; i < 3; ++i) {
      CHECK_EQ(waiting.errors[i], "");
      CHECK(waiting.results[i].token_ids == reference(waiting.prompts[i], options_of(i), i));
      CHECK_EQ(waiting.sessions[i]->num_cached_tokens(), 12u);
    }
    CHECK_EQ(f.executor->step_sizes[1], joins ? 3u : 1u);  // all of them waited
    CHECK_EQ(count_steps_of(f, 3) > 0, joins);
  }
}

TEST_CASE("two sessions whose callers take their time find together, and one that stops does not hold up the other") {
  using std::chrono::milliseconds;
  const Fixture f;
  f.executor->joins = true;
  f.executor->on_step = [] { std::this_thread::sleep_for(milliseconds(40)); };
  std::array<Tokens, 2> results;
  std::atomic<bool> is_first_done = false;
  const auto run = [&](uint32_t i) {
    Session session(f.engine, {.sequence_id = i});
    uint32_t num_tokens = 0;
    results[i] = session.generate(iota_tokens(1, int32_t(i)), options_of(i), [&](const TokenEvent&) {
      std::this_thread::sleep_for(milliseconds(1));  // an eighth of a step is five
      if (i == 1 && ++num_tokens == 8)
        while (!is_first_done) std::this_thread::sleep_for(milliseconds(1));
      return true;
    }).token_ids;
    if (i == 0) is_first_done = true;
  };
  std::thread first(run, 0), second(run, 1);
  first.join();
  second.join();
  for (uint32_t i = 0; i < 2; ++i) CHECK(results[i] == reference(iota_tokens(1, int32_t(i)), options_of(i), i));
  // Without waiting each would be at its caller while the other has its step, all the time.
  CHECK(count_steps_of(f, 2) > 0);
}

TEST_CASE("longer prompts have steps of their own") {
  const Fixture f;
  f.executor->joins = true;
  Waiting waiting(f, 3, false);
  run_behind(f, waiting);
  for (uint32_t i = 0; i < 3; ++i) {
    CHECK(waiting.results[i].token_ids == reference(waiting.prompts[i], options_of(i), i));
    CHECK_EQ(f.executor->step_sizes[1 + i], 5 + i);
  }
}

TEST_CASE("a step takes no more rows than it may have") {
  const Fixture f(4, 4);  // steps of 4 tokens
  f.executor->joins = true;
  Waiting waiting(f, 7, true);
  run_behind(f, waiting);
  for (uint32_t i = 0; i < 7; ++i) CHECK(waiting.results[i].token_ids == reference(waiting.prompts[i], options_of(i), i));
  CHECK_EQ(f.executor->step_sizes[1], 4u);
  CHECK_EQ(*std::ranges::max_element(f.executor->step_sizes), 4u);
}

TEST_CASE("a session that is cancelled while it waits is not taken along") {
  const Fixture f;
  f.executor->joins = true;
  Waiting waiting(f, 4, true);
  run_behind(f, waiting, [&] {
    waiting.sessions[0]->cancel();  // the one whose turn would be next
    waiting.sessions[2]->cancel();
  });
  for (const uint32_t i : {0u, 2u}) {
    CHECK(waiting.results[i].finish_reason == FinishReason::abort);
    CHECK(waiting.results[i].token_ids.empty());
    CHECK_EQ(waiting.sessions[i]->num_cached_tokens(), 0u);
  }
  for (const uint32_t i : {1u, 3u}) CHECK(waiting.results[i].token_ids == reference(waiting.prompts[i], options_of(i), i));
  CHECK_EQ(f.executor->step_sizes[1], 2u);
}

TEST_CASE("a step that fails is an error of all that took part, and no session is changed by it") {
  const Fixture f;
  f.executor->joins = true;
  Waiting waiting(f, 3, true);
  Session first(f.engine);
  StepQueue& queue = f.engine->impl().steps;
  f.executor->on_step = [&] {
    if (f.executor->step_sizes.size() == 1) waiting.start(queue);
    else if (f.executor->step_sizes.back() == 3) throw std::runtime_error("the step broke");
  };
  first.generate(iota_tokens(9), greedy(1));
  waiting.join();
  f.executor->on_step = nullptr;
  for (uint32_t i = 0; i < 3; ++i) {
    CHECK_EQ(waiting.errors[i], "the step broke");
    CHECK_EQ(waiting.sessions[i]->num_cached_tokens(), 0u);
    const Tokens again = waiting.sessions[i]->generate(waiting.prompts[i], options_of(i)).token_ids;
    CHECK(again == reference(waiting.prompts[i], options_of(i), i));
  }
}

TEST_CASE("sessions that come and go give what they give alone") {
  const Fixture f;
  f.executor->joins = true;
  std::vector<std::thread> threads;
  std::vector<uint32_t> num_equal(6);
  for (uint32_t i = 0; i < 6; ++i)
    threads.emplace_back([&, i] {
      Session session(f.engine, {.sequence_id = i});
      Tokens history = iota_tokens(1 + 4 * i, int32_t(i));
      for (uint32_t turn = 0; turn < 5; ++turn) {
        GenerateOptions options = options_of(i);
        options.max_tokens = 3 + (i + turn) % 7;
        const Tokens tokens = session.generate(history, options).token_ids;
        num_equal[i] += tokens == reference(history, options, i);
        history = history + tokens;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK((num_equal == std::vector<uint32_t>(6, 5)));
}

TEST_CASE("a joint cache has the rows of its parts, and no memory") {
  const ModelConfig config = fixture::small_quantised();
  KvCache a(config, {.max_context = 200, .max_step_tokens = 8}), b(config, {.max_context = 70, .max_step_tokens = 4});
  a.reserve(0, 150);
  b.reserve(0, 60);
  KvCache joint(std::vector<KvCache*>{&a, &b});
  CHECK_EQ(joint.num_seqs(), 2u);
  CHECK_EQ(joint.num_layers(), a.num_layers());
  CHECK_EQ(joint.max_context(), 200u);
  CHECK_EQ(joint.max_step_tokens(), 4u);
  CHECK_EQ(joint.reserved_tokens(0), 150u);
  CHECK_EQ(joint.reserved_tokens(1), 60u);
  CHECK(joint.max_segments() >= std::max(a.max_segments(), b.max_segments()));
  const KvCache turned(std::vector<KvCache*>{&b, &a});
  CHECK_EQ(turned.max_context(), 200u);
  CHECK_EQ(turned.max_step_tokens(), 4u);
  CHECK_EQ(turned.max_segments(), joint.max_segments());
  for (uint32_t layer = 0; layer < a.num_layers(); ++layer)
    for (uint32_t seq = 0; seq < 2; ++seq) {
      KvCache& part = seq ? b : a;
      CHECK(joint.k_row(layer, seq, 0, 37) == part.k_row(layer, 0, 0, 37));
      CHECK(joint.v_row(layer, seq, 0, 37) == part.v_row(layer, 0, 0, 37));
      std::vector<KvSegment> found(joint.max_segments()), expected(part.max_segments());
      const uint32_t count = part.segments(layer, 0, 0, 30, 60, expected.data());
      CHECK_EQ(joint.segments(layer, seq, 0, 30, 60, found.data()), count);
      for (uint32_t i = 0; i < count; ++i)
        CHECK(found[i].k == expected[i].k && found[i].v == expected[i].v && found[i].num_keys == expected[i].num_keys);
    }
  CHECK_THROWS(invalid_argument, "a joint one", joint.reserve(0, 160));
  CHECK_THROWS(invalid_argument, "a joint one", joint.truncate(0, 1));
  KvCache two(config, {.max_context = 70, .max_step_tokens = 4, .num_seqs = 2});
  CHECK_THROWS(invalid_argument, "of one sequence", KvCache(std::vector<KvCache*>{&a, &two}));
  CHECK_THROWS(invalid_argument, "expected some", KvCache(std::vector<KvCache*>{}));
}

namespace {

/// Joint steps beside steps of each alone, with the context of a draft model where there is one.
void check_joint_steps_on_cpu(const DraftConfig* draft) {
  EngineOptions options;
  options.num_threads = 2;
  options.prefill_chunk_tokens = 32;
  const auto engine = Engine::synthetic(fixture::small_quantised(), 3, options, draft);
  Engine::Impl& impl = engine->impl();
  CHECK(impl.joins_steps());
  constexpr uint32_t kCount = 11;  // more than a decode step has rows
  std::vector<std::unique_ptr<SessionState>> joint, alone;
  for (uint32_t i = 0; i < kCount; ++i)
    for (auto* list : {&joint, &alone}) list->push_back(std::make_unique<SessionState>(engine, 64 + 16 * i, i));
  const uint32_t vocab_size = impl.config.vocab_size;
  std::vector<std::vector<uint64_t>> scratch(kCount, std::vector<uint64_t>(sampler_scratch_bytes(vocab_size) / 8 + 1));
  std::vector<int32_t> last(kCount);
  std::vector<SamplingParams> params(kCount);
  const uint32_t row = 0;
  const std::vector<int32_t> masked = {1, 2, 3, 50};
  for (uint32_t i = 0; i < kCount; ++i) {
    std::vector<int32_t> prompt;
    for (uint32_t t = 0; t < 3 + 2 * i; ++t) prompt.push_back(int32_t((i * 31 + t * 7) % vocab_size));
    last[i] = prompt.back();
    params[i].temperature = i % 2 ? 1.0f : 0.0f;
    params[i].seed = i;
    if (i % 3 == 0) params[i].num_logprobs = 4;
    if (i % 4 == 1) params[i].logit_bias = {{5, 3.0f}, {9, -100.0f}};
    for (auto* list : {&joint, &alone}) {
      StepOutput output;
      (*list)[i]->sequence.step(impl, std::span(prompt).first(prompt.size() - 1), {}, nullptr, output);
    }
  }
  for (uint32_t turn = 0; turn < (draft ? 40u : 6u); ++turn) {  // some make context several times
    std::vector<SampleResult> together(kCount), single(kCount);
    std::vector<StepOutput> outputs(kCount);
    std::vector<SampleRequest> samples(kCount);
    std::vector<StepRequest> requests;
    for (uint32_t i = 0; i < kCount; ++i) {
      samples[i] = {.params = &params[i], .sequence_id = i, .position = joint[i]->sequence.size() + 1};
      samples[i].scratch = scratch[i].data();
      if (i % 5 == 2) samples[i].masked_ids = masked.data(), samples[i].num_masked_ids = uint32_t(masked.size());
      outputs[i].sampled = &together[i];
      requests.push_back({&joint[i]->sequence, {&last[i], 1}, {&row, 1}, &samples[i], &outputs[i]});
    }
    const auto pending = [](const StepRequest& request) { return request.sequence->num_pending_context(); };
    std::iter_swap(requests.begin(), std::ranges::max_element(requests, {}, pending));
    run_step(impl, requests);
    for (uint32_t i = 0; i < kCount; ++i) {
      StepOutput output;
      output.sampled = &single[i];
      alone[i]->sequence.step(impl, {&last[i], 1}, {&row, 1}, &samples[i], output);
      CHECK_EQ(together[i].token_id, single[i].token_id);
      CHECK_EQ(together[i].logprob, single[i].logprob);
      CHECK_EQ(together[i].num_alternatives, i % 3 ? 0u : 4u);
      for (uint32_t n = 0; n < together[i].num_alternatives; ++n)
        CHECK(together[i].alternatives[n].token_id == single[i].alternatives[n].token_id &&
              together[i].alternatives[n].logprob == single[i].alternatives[n].logprob);
      last[i] = single[i].token_id;
    }
  }
  const LayerConfig& layer = impl.config.layers[0];
  uint64_t num_rows = 0, num_equal = 0;
  uint32_t num_contexts = 0;
  for (uint32_t i = 0; i < kCount; ++i) {
    CHECK(joint[i]->sequence.token_ids() == alone[i]->sequence.token_ids());
    auto& a = const_cast<KvCache&>(joint[i]->sequence.cache());
    auto& b = const_cast<KvCache&>(alone[i]->sequence.cache());
    for (uint32_t l = 0; l < impl.config.num_layers; ++l)
      for (uint32_t pos = joint[i]->sequence.size() - 6; pos < joint[i]->sequence.size(); ++pos, ++num_rows)
        num_equal += !std::memcmp(a.k_row(l, 0, 0, pos), b.k_row(l, 0, 0, pos), 2 * layer.qk_head_dim) &&
                     !std::memcmp(a.v_row(l, 0, 0, pos), b.v_row(l, 0, 0, pos), 2 * layer.v_head_dim);
    if (!draft) continue;
    const auto num_context = [&](const SessionState& s) { return s.sequence.size() - s.sequence.num_pending_context(); };
    const uint32_t end = std::min(num_context(*joint[i]), num_context(*alone[i]));
    CHECK(joint[i]->sequence.num_pending_context() <= 32 + kCount);
    num_contexts += end > 0;
    const uint32_t first = end > a.ring_rows(impl.config.num_layers) ? end - a.ring_rows(impl.config.num_layers) : 0;
    for (uint32_t pos = first; pos < end; ++pos, ++num_rows)
      num_equal += !std::memcmp(a.k_row(impl.config.num_layers, 0, 0, pos), b.k_row(impl.config.num_layers, 0, 0, pos),
                                2 * draft->qk_head_dim) &&
                   !std::memcmp(a.v_row(impl.config.num_layers, 0, 0, pos), b.v_row(impl.config.num_layers, 0, 0, pos),
                                2 * draft->v_head_dim);
  }
  CHECK_EQ(num_equal, num_rows);
  CHECK_EQ(num_contexts, draft ? kCount : 0u);
}

}  // namespace

TEST_CASE("on the CPU a joint step leaves the same tokens, keys and values as steps of each alone") {
  check_joint_steps_on_cpu(nullptr);
}

TEST_CASE("on the CPU joint steps make the context of a draft model, in turn, with the bits of steps alone") {
  const ModelConfig target = fixture::small_quantised();
  const DraftConfig draft = test_configs::make_draft(target, {4, 2, 32, 16, 8}, 1, 5, 40, {0, 1});
  check_joint_steps_on_cpu(&draft);
}

TEST_CASE("a joint step makes the context of a draft model for the sequence that waits longest, many tokens at a time") {
  const Fixture f(16, 4, Drafts::model);
  f.executor->joins = true;
  Engine::Impl& impl = f.engine->impl();
  const uint32_t most = std::min(kLazyContextRows, impl.round_plan->options().max_context_rows);
  constexpr uint32_t kCount = 3;
  const std::array<uint32_t, kCount> begin = {most - 2, most - 1, most - 3};
  const std::array<uint32_t, kCount> expected[] = {
      {most - 1, most, most - 2}, {most, 1, most - 1}, {1, 2, most}, {2, 3, 1}};
  const SamplingParams params{.temperature = 0.0f};
  const int32_t token = 5;
  const uint32_t row = 0;
  const std::atomic<bool> is_cancelled = false;
  std::vector<std::unique_ptr<SessionState>> sessions;
  for (uint32_t i = 0; i < kCount; ++i) {
    sessions.push_back(std::make_unique<SessionState>(f.engine, 64, i));
    StepOutput output;
    while (sessions[i]->sequence.size() < begin[i]) sessions[i]->sequence.step(impl, {&token, 1}, {}, nullptr, output);
  }
  const auto take_part = [&](uint32_t i) {
    std::vector<uint64_t> scratch(sampler_scratch_bytes(kVocab) / 8 + 1);
    SampleRequest sample{.params = &params, .sequence_id = i, .position = sessions[i]->sequence.size() + 1};
    sample.scratch = scratch.data();
    SampleResult drawn;
    StepOutput output;
    output.sampled = &drawn;
    StepRequest step{&sessions[i]->sequence, {&token, 1}, {&row, 1}, &sample, &output};
    JointRequest request{step};
    impl.joint_steps.run(impl, request, is_cancelled);
  };
  for (const auto& num_pending : expected) {
    std::vector<std::thread> threads;
    impl.steps.lock();
    for (uint32_t i = 0; i < kCount; ++i) {
      threads.emplace_back(take_part, i);
      while (impl.steps.num_waiting() != i + 1) std::this_thread::yield();
    }
    impl.steps.unlock();
    for (std::thread& thread : threads) thread.join();
    for (uint32_t i = 0; i < kCount; ++i) CHECK_EQ(sessions[i]->sequence.num_pending_context(), num_pending[i]);
  }
  CHECK_EQ(f.executor->num_joint_steps, 4u);
}

TEST_CASE("with a draft model sessions share steps, too, and draft afterwards as if they had been alone") {
  const auto modes = {DraftOptions::Mode::off, DraftOptions::Mode::adaptive};
  for (const DraftOptions::Mode mode : modes) {
    const Fixture f(16, 4, Drafts::model);
    f.executor->joins = true;
    f.executor->on_step = [] { std::this_thread::sleep_for(std::chrono::milliseconds(1)); };  // or they hardly meet
    constexpr uint32_t kCount = 3, kTokens = 120;
    std::vector<std::unique_ptr<Session>> sessions;
    std::vector<Tokens> texts(kCount), outputs(kCount);
    std::vector<std::thread> threads;
    for (uint32_t i = 0; i < kCount; ++i) {
      sessions.push_back(std::make_unique<Session>(f.engine, SessionOptions{.sequence_id = i}));
      texts[i] = iota_tokens(20 + 9 * i, int32_t(i));
    }
    for (uint32_t i = 0; i < kCount; ++i)
      threads.emplace_back([&, i] {
        GenerateOptions options = greedy(kTokens);
        options.draft.mode = mode;
        outputs[i] = sessions[i]->generate(texts[i], options).token_ids;
      });
    for (std::thread& thread : threads) thread.join();
    for (uint32_t i = 0; i < kCount; ++i) {
      CHECK(outputs[i] == reference(texts[i], greedy(kTokens)));
      texts[i].insert(texts[i].end(), outputs[i].begin(), outputs[i].end());
    }
    if (mode == DraftOptions::Mode::off) CHECK(count_steps_of(f, 3) > kTokens / 2);
    f.executor->on_step = nullptr;
    for (uint32_t i = 0; i < kCount; ++i) {
      GenerateOptions drafting = greedy(50);
      drafting.draft.mode = DraftOptions::Mode::fixed;
      const Fixture other(16, 4, Drafts::model);
      Session fresh(other.engine);
      const GenerateResult result = sessions[i]->generate(texts[i], drafting);
      CHECK(result.stats.num_cached_tokens + 2 >= texts[i].size());
      CHECK(result.token_ids == reference(texts[i], drafting));
      CHECK_EQ(result.stats.draft.num_accepted_tokens, fresh.generate(texts[i], drafting).stats.draft.num_accepted_tokens);
      CHECK(result.stats.draft.num_accepted_tokens > 10);
    }
  }
}

namespace {

/// In a joint step, or one after the other where the executor joins none.
void check_skipped_rows(const std::string& device) {
  EngineOptions options;
  options.device = device;
  options.num_threads = 2;
  const auto engine = Engine::synthetic(fixture::small_quantised(), 3, options);
  Engine::Impl& impl = engine->impl();
  for (const float temperature : {0.0f, 0.9f}) {  // the best logits of each row, and whole rows
    const SamplingParams params{.temperature = temperature, .sample_top_p = 0.9f, .seed = 7};
    constexpr uint32_t kCount = 3, kRows = 4;
    std::vector<std::vector<uint64_t>> scratch(kCount, std::vector<uint64_t>(sampler_scratch_bytes(impl.config.vocab_size) / 8 + 1));
    std::vector<std::unique_ptr<SessionState>> sessions;
    for (uint32_t i = 0; i < kCount; ++i) sessions.push_back(std::make_unique<SessionState>(engine, 64, i));
    const auto request_of = [&](uint32_t i, uint32_t row) {
      SampleRequest request{.params = &params, .sequence_id = i, .position = row + 1};
      request.scratch = scratch[i].data();
      return request;
    };
    std::vector<std::vector<int32_t>> blocks(kCount, {5});  // a token, and what follows it
    for (uint32_t i = 0; i < kCount; ++i)
      for (uint32_t row = 0, first = 0; row < kRows; ++row) {
        SampleResult drawn;
        StepOutput output;
        output.sampled = &drawn;
        const SampleRequest request = request_of(i, row);
        sessions[i]->sequence.step(impl, {&blocks[i].back(), 1}, {&first, 1}, &request, output);
        blocks[i].push_back(drawn.token_id);
      }
    const std::vector<std::vector<int32_t>> expected = blocks;
    blocks[0][1] ^= 1;  // wrong drafts: the first of one session, the last of another, none of the third
    blocks[1][kRows - 1] ^= 1;
    const uint32_t num_drawn[kCount] = {1, kRows - 1, kRows};
    const uint32_t rows[kRows] = {0, 1, 2, 3};
    std::vector<std::array<SampleRequest, kRows>> samples(kCount);
    std::vector<std::array<SampleResult, kRows>> drawn(kCount);
    std::vector<StepOutput> outputs(kCount);
    std::vector<StepRequest> requests;
    for (uint32_t i = 0; i < kCount; ++i) {
      sessions[i]->sequence.keep_common_prefix({}, 0);
      outputs[i].sampled = drawn[i].data();
      for (uint32_t row = 0; row < kRows; ++row) {
        samples[i][row] = request_of(i, row);
        samples[i][row].holds_draft = row != 0;
      }
      requests.push_back({&sessions[i]->sequence, std::span(blocks[i]).first(kRows), rows, samples[i].data(), &outputs[i]});
    }
    const size_t num_together = impl.joins_steps() ? kCount : 1;
    const auto run_all = [&] {
      for (size_t i = 0; i < kCount; i += num_together) run_step(impl, std::span(requests).subspan(i, num_together));
    };
    run_all();
    for (uint32_t i = 0; i < kCount; ++i)
      for (uint32_t row = 0; row < kRows; ++row)
        CHECK_EQ(drawn[i][row].token_id, row < num_drawn[i] ? expected[i][row + 1] : -1);
    for (uint32_t i = 0; i < kCount; ++i) sessions[i]->sequence.keep_common_prefix({}, 0);
    samples[1][0].holds_draft = true;
    CHECK_THROWS(invalid_argument, num_together > 1 ? "sample[4]" : "sample[0]", run_all());
  }
}

}  // namespace

TEST_CASE("a joint step draws no row behind a draft that is not confirmed, and the others as without drafts") {
  check_skipped_rows("cpu");
}

TEST_CASE("a step of the reference does not draw them, either") { check_skipped_rows("ref"); }

CHECK_MAIN()
