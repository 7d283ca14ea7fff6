// The engine on the emulated GPU, through the public API: what sessions generate there, against the
// CPU engine and against its own logits; memory, errors, hangs.
#include "device_step_fixture.h"
#include "engine/cuda_engine.h"
#include "engine/engine_impl.h"
#include "plan_mutator.h"

#include <mimo_rt/session.h>

using namespace mimo_rt;
using namespace fixture;

namespace {

using Tokens = std::vector<int32_t>;

constexpr uint32_t kMaxContext = 64;  // the emulator looks after every byte of keys and values
const SessionOptions kSmall{.max_context = kMaxContext};

const DeviceModel& model() {
  static const DeviceModel model(device_config());
  return model;
}

EngineOptions options_for(uint32_t num_threads) {
  EngineOptions options;
  options.device = "cuda";
  options.num_threads = num_threads;
  return options;
}

std::shared_ptr<Engine> open_engine(const std::shared_ptr<EmulatedStepDevice>& device,
                                    const EngineOptions& options = options_for(2),
                                    const std::filesystem::path& draft_dir = {}) {
  return open_cuda_engine(*model().checkpoint, model().config, options, draft_dir, device);
}
std::shared_ptr<Engine> open_engine() { return open_engine(std::make_shared<EmulatedStepDevice>()); }

/// The CPU engine with the same weights.
std::shared_ptr<Engine> cpu_engine() {
  auto impl = Engine::Impl::prepare(model().config, nullptr, options_for(2), plan_options(2, 8, 8));
  impl->weights = std::make_unique<Weights>(
      Weights::load(*model().checkpoint, model().config, {.num_threads = 1, .progress = {}}));
  impl->weight_bytes = count_weight_bytes(*impl->weights, nullptr);
  impl->executor = make_cpu_executor(*impl->weights, nullptr, {&impl->decode_plan, &impl->prefill_plan},
                                     "cpu-generic", {.num_workers = 2});
  return Engine::Impl::assemble(std::move(impl));
}

GenerateOptions greedy(uint32_t max_tokens) {
  GenerateOptions options;
  options.sampling.temperature = 0.0f;
  options.max_tokens = max_tokens;
  options.ignore_eos = true;
  return options;
}

Tokens joined(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// The tokens that the sampler draws from the engine's own logits, all computed in one go.
Tokens redrawn(const std::shared_ptr<Engine>& engine, const Tokens& prompt, const Tokens& output,
               const SamplingParams& params, uint64_t sequence_id) {
  const uint32_t vocab = engine->config().vocab_size;
  Session session(engine, kSmall);
  std::vector<float> logits;
  session.logits(joined(prompt, output), logits);
  std::vector<uint32_t> counts(vocab);
  for (const int32_t id : prompt) ++counts[static_cast<size_t>(id)];
  std::vector<std::max_align_t> scratch(sampler_scratch_bytes(vocab) / sizeof(std::max_align_t) + 1);
  Tokens drawn;
  for (size_t i = 0; i < output.size(); ++i) {
    const auto position = static_cast<uint32_t>(prompt.size() + i);
    SampleRequest request{.params = &params, .token_counts = counts.data(), .sequence_id = sequence_id,
                          .position = position, .scratch = scratch.data()};
    SampleResult result;
    sample_token(logits.data() + uint64_t{position - 1} * vocab, vocab, request, result);
    drawn.push_back(result.token_id);
    ++counts[static_cast<size_t>(output[i])];
  }
  return drawn;
}

}  // namespace

TEST_CASE("greedy tokens are the CPU engine's; the same statistics") {
  const Tokens prompt = random_tokens(model().config, 21, 3);
  const auto engine = open_engine(), cpu = cpu_engine();
  CHECK_EQ(engine->backend(), std::string("cuda"));
  CHECK_EQ(engine->num_workers(), 2u);
  CHECK_EQ(engine->options().prefill_chunk_tokens, 8u);
  CHECK_EQ(engine->options().max_decode_tokens, 8u);
  CHECK(engine->decode_plan().hash() == engine->prefill_plan().hash());
  Session session(engine, kSmall), cpu_session(cpu, kSmall);
  const GenerateResult result = session.generate(prompt, greedy(16));
  const GenerateResult expected = cpu_session.generate(prompt, greedy(16));
  CHECK(result.token_ids == expected.token_ids);
  CHECK(result.finish_reason == FinishReason::length);
  CHECK_EQ(result.stats.num_prompt_tokens, 21u);
  const auto experts_of = [](const GenerateResult& r, const Engine& e) {
    const double of_experts = r.stats.weight_bytes_per_step - static_cast<double>(e.dense_bytes_per_step());
    return std::llround(r.stats.num_steps * of_experts / static_cast<double>(e.expert_bytes()));
  };
  CHECK_EQ(experts_of(result, *engine), experts_of(expected, *cpu));
  CHECK(engine->weight_bytes() > engine->dense_bytes_per_step() + engine->expert_bytes());
}

TEST_CASE("sampled tokens are those that the sampler draws from the same logits; logprobs, too") {
  const Tokens prompt = random_tokens(model().config, 10, 4);
  const auto engine = open_engine();
  Session session(engine, {.max_context = kMaxContext, .sequence_id = 7});
  GenerateOptions options = greedy(10);
  options.sampling = {.temperature = 0.9f, .sample_top_k = 40, .sample_top_p = 0.95f,
                      .repetition_penalty = 1.2f, .seed = 5, .num_logprobs = 3, .want_logprob = true};
  const GenerateResult result = session.generate(prompt, options);
  CHECK(result.token_ids == redrawn(engine, prompt, result.token_ids, options.sampling, 7));
  CHECK(result.token_ids != redrawn(engine, prompt, result.token_ids, options.sampling, 8));  // control
  CHECK_EQ(result.logprobs.size(), 10u);
  for (const auto& entry : result.logprobs) {
    CHECK(entry.chosen.logprob < 0.0f);
    CHECK_EQ(entry.alternatives.size(), 3u);
  }
  options.sampling.logit_bias = {{11, 100.0f}};
  options.stop_token_ids = {11};
  options.min_tokens = 3;  // 11 is masked until then
  const GenerateResult stopped = session.generate(prompt, options);
  CHECK_EQ(stopped.token_ids.size(), 4u);
  CHECK_EQ(stopped.token_ids.back(), 11);
}

TEST_CASE("a session goes on from what it holds, rolls back, and shares the engine") {
  const Tokens prompt = random_tokens(model().config, 12, 5), other = random_tokens(model().config, 9, 6);
  const auto engine = open_engine();
  Session session(engine, kSmall), second(engine, kSmall);
  const Tokens first = session.generate(prompt, greedy(5)).token_ids;
  const Tokens beside = second.generate(other, greedy(4)).token_ids;
  const Tokens longer = joined(joined(prompt, first), {1, 2, 3});
  const GenerateResult extended = session.generate(longer, greedy(4));
  CHECK_EQ(extended.stats.num_cached_tokens, 16u);
  const Tokens branch = joined({prompt.begin(), prompt.begin() + 10}, {4, 5});
  const GenerateResult back = session.generate(branch, greedy(4));
  CHECK_EQ(back.stats.num_cached_tokens, 10u);
  const auto alone = [&](const Tokens& tokens) {
    Session fresh(open_engine(), kSmall);
    return fresh.generate(tokens, greedy(4)).token_ids;
  };
  CHECK(extended.token_ids == alone(longer));
  CHECK(back.token_ids == alone(branch));
  CHECK(beside == alone(other));
}

TEST_CASE("logits are bit-equal for every step size; a greedy step brings none") {
  const Tokens tokens = random_tokens(model().config, 30, 7);
  const auto engine = open_engine();
  Session session(engine, kSmall);
  std::vector<float> alone, together;
  session.logits(tokens, alone, 1);
  session.logits(tokens, together);
  CHECK(bit_equal(alone, together));
  CHECK_THROWS(invalid_argument, "step_tokens: expected 0..8, got 9", session.logits(tokens, together, 9));

  EmulatedEngine one(model(), Plan::build(model().config, plan_options(2, 8, 8, PlanOptions::FuseNorm::no)));
  const SamplingParams params{.temperature = 0.0f};
  const SampleRequest request{.params = &params, .position = 3, .scratch = &one};
  StepRows rows(tokens, 0, 0, 3);
  const uint32_t last = 2;
  rows.input.num_logit_rows = 1;
  rows.input.logit_rows = &last;
  rows.input.sample = &request;
  rows.input.wants_logits = false;
  CHECK(one.run(rows.input));
  CHECK(one.output.logits == nullptr);
  const float* best = alone.data() + 2 * model().config.vocab_size;
  CHECK_EQ(one.sampled(0).token_id, std::max_element(best, best + model().config.vocab_size) - best);
  CHECK(!std::memcmp(one.executor->buffer_data(one.plan, kLogits), best, 4 * model().config.vocab_size));
}

TEST_CASE("rings have as many rows as the cache believes: that decides what may be rolled back") {
  ModelConfig config = model().config;
  for (const uint32_t window : {1u, 7u, 24u, 100u, 128u, 129u})
    for (const uint32_t step_rows : {1u, 5u, 8u})
      for (const uint32_t max_context : {40u, 137u, 1000u}) {
        for (LayerConfig& layer : config.layers)
          if (layer.window_tokens) layer.window_tokens = window;
        const KvCache cache(config, {max_context, step_rows, 1});
        const cuda::KvLayout layout(config.layers, {max_context, step_rows, 1});
        for (uint32_t l = 0; l < config.num_layers; ++l)
          if (cache.ring_rows(l)) CHECK_EQ(layout.view(l, nullptr, nullptr).block_rows, cache.ring_rows(l));
      }
}

TEST_CASE("a generation can be cancelled between two tokens, and the session goes on") {
  const Tokens prompt = random_tokens(model().config, 9, 8);
  Session session(open_engine(), kSmall);
  const Tokens whole = session.generate(prompt, greedy(6)).token_ids;
  uint32_t num_seen = 0;
  const GenerateResult cancelled = session.generate(prompt, greedy(6), [&](const TokenEvent&) {
    if (++num_seen == 2) session.cancel();
    return true;
  });
  CHECK(cancelled.finish_reason == FinishReason::abort);
  CHECK(cancelled.token_ids == Tokens(whole.begin(), whole.begin() + 2));
  CHECK(session.generate(prompt, greedy(6)).token_ids == whole);
}

TEST_CASE("memory: what is missing and what to lower; all of it comes back") {
  const auto device = std::make_shared<EmulatedStepDevice>();
  const uint64_t all = device->free_bytes_left;
  const uint64_t weight_bytes = model().pack().block().size();
  device->free_bytes_left = weight_bytes - 1;
  CHECK_THROWS(out_of_memory, "got " + std::to_string(weight_bytes - 1) + "; 1 are missing.", open_engine(device));
  device->free_bytes_left = all;
  {
    const auto engine = open_engine(device);
    CHECK_EQ(device->free_bytes_left, all - weight_bytes);
    device->free_bytes_left = 1000;
    CHECK_THROWS(out_of_memory, "Lower max_context", Session(engine, kSmall));
    CHECK_EQ(device->free_bytes_left, 1000u);
    device->free_bytes_left = all - weight_bytes;
    Session session(engine, kSmall);
    const uint64_t left = device->free_bytes_left;
    CHECK(left < all - weight_bytes - session.kv_bytes());
    const Tokens tokens = session.generate(random_tokens(model().config, 3, 1), greedy(2)).token_ids;
    const uint64_t after_step = device->free_bytes_left;
    session.reset();
    CHECK_EQ(device->free_bytes_left - after_step, all - weight_bytes - left);
    CHECK(session.generate(random_tokens(model().config, 3, 1), greedy(2)).token_ids == tokens);
  }
  CHECK_EQ(device->free_bytes_left, all);
}

TEST_CASE("a hang is a timeout with a report; that executor stops, the GPU goes on") {
  PlanMutator broken(Plan::build(model().config, plan_options(2, 4, 4, PlanOptions::FuseNorm::no)));
  for (auto& list : broken.lists)
    for (Task& task : list)
      if (task.kind == TaskKind::o_proj && task.layer_idx == 2) task.signal_counter = kNoCounter;
  EmulatedEngine engine(model(), broken.finish());
  engine.device->deadline_ns = EmulatedStepDevice::kShortDeadlineNs;
  const Tokens tokens = random_tokens(model().config, 4, 2);
  const StepRows rows(tokens, 0, 0, 4);
  const auto step = [&] { engine.executor->run(engine.plan, engine.cache, rows.input, engine.output); };
  CHECK_THROWS(timeout, "waits for counter 'layer 2 o_proj'", step());
  CHECK_EQ(engine.device->num_launches, 1u);
  CHECK_THROWS(timeout, "stopped for good: ", step());
  CHECK_EQ(engine.device->num_launches, 1u);
  engine.device->deadline_ns = cuda::kMaxDeadlineNs;
  engine.device->num_sms = 2;
  Session session(open_engine(engine.device), kSmall);
  CHECK_EQ(session.generate(tokens, greedy(2)).token_ids.size(), 2u);
}

TEST_CASE("a step that does not come back, or that the device loses, stops the executor") {
  const auto device = std::make_shared<EmulatedStepDevice>();
  const Tokens tokens = random_tokens(model().config, 4, 2);
  Session stuck(open_engine(device), kSmall);
  device->is_stuck = true;
  CHECK_THROWS(timeout, "the GPU did not end a step in 60 s", stuck.generate(tokens, greedy(2)));
  device->is_stuck = false;
  CHECK_THROWS(timeout, "stopped for good", stuck.generate(tokens, greedy(2)));
  const auto lost = std::make_shared<EmulatedStepDevice>();
  Session session(open_engine(lost), kSmall);
  lost->loss = "an illegal address";
  CHECK_THROWS(device_lost, "an illegal address", session.generate(tokens, greedy(2)));
  CHECK_THROWS(timeout, "stopped for good", session.generate(tokens, greedy(2)));
}

TEST_CASE("options that the GPU cannot serve are refused before anything is loaded") {
  const auto device = std::make_shared<EmulatedStepDevice>();
  const auto refused = [&](ErrorCode code, const char* needle, auto change) {
    EngineOptions options = options_for(2);
    change(options);
    try {
      open_engine(device, options);
      CHECK(false);
    } catch (const Error& error) {
      CHECK(error.code() == code);
      CHECK(std::string(error.what()).find(needle) != std::string::npos);
    }
  };
  refused(ErrorCode::invalid_argument, "num_threads: expected 0..4, the multiprocessors of emulated, got 5",
          [](EngineOptions& o) { o.num_threads = 5; });
  refused(ErrorCode::unavailable, "activations: expected bf16", [](EngineOptions& o) { o.activations = "int8"; });
  refused(ErrorCode::unavailable, "does not draft yet, got '/d'", [](EngineOptions& o) { o.draft = "/d"; });
  const auto engine = open_engine(device, options_for(0), "/model/dflash");
  CHECK_EQ(engine->num_workers(), 4u);
  CHECK_EQ(engine->notes().size(), 1u);
  CHECK(engine->notes()[0].find("the draft of this model is not used") == 0);
  CHECK(open_engine()->notes().empty());
  const Plan plan = Plan::build(model().config, plan_options(3, 4, 4, PlanOptions::FuseNorm::no));
  device->num_sms = 2;
  CHECK_THROWS(invalid_argument, "num_workers: expected at most 2",
               cuda::make_cuda_executor(device, model().pack(), model().config, {&plan}, {}));
}

TEST_CASE("the backend says why there is no GPU, or which one there is") {
  const auto reason = [](const CudaDevices& devices, bool is_available) {
    const Backend backend = cuda_backend(devices);
    CHECK_EQ(backend.available, is_available);
    return backend.reason;
  };
  CHECK_EQ(reason({false, {}, "not built into this wheel"}, false), std::string("not built into this wheel"));
  CHECK_EQ(reason({true, {}, "no driver"}, false), std::string("no driver"));
  CHECK_EQ(reason({true, {{"Old", 8, 9, 100, 1}}, ""}, false),
           std::string("expected a GPU with compute capability 9.0 or 10.0, got Old (sm_89)"));
  CHECK_EQ(reason({true, {{"New", 9, 0, 132, 1}, {"Old", 8, 9, 1, 1}}, ""}, true),
           std::string("one resident kernel on New (sm_90), 132 multiprocessors"));
}

CHECK_MAIN()
