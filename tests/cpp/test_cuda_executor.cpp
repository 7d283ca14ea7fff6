// The executor's other side, on the emulated GPU: memory that is missing and comes back, steps that
// do not, options that a GPU cannot serve, and what the backend says of the machine.
#include "device_engine_fixture.h"

using namespace mimo_rt;
using namespace fixture;

TEST_CASE("rings have all rows that the cache believes: that decides what may be rolled back") {
  ModelConfig config = model().config;
  for (const uint32_t window : {1u, 7u, 24u, 100u, 128u, 129u})
    for (const uint32_t step_rows : {1u, 5u, 8u})
      for (const uint32_t max_context : {40u, 137u, 1000u}) {
        for (LayerConfig& layer : config.layers)
          if (layer.window_tokens) layer.window_tokens = window;
        const auto check_rows = [&](uint32_t num_rows, uint32_t believed) {  // a cache's are no more than its context
          CHECK(num_rows == believed || (num_rows > believed && believed >= max_context));
        };
        const KvCache cache(config, {max_context, step_rows, 1});
        const cuda::KvLayout layout(config.layers, {max_context, step_rows, 1});
        for (uint32_t l = 0; l < config.num_layers; ++l)
          if (cache.ring_rows(l)) check_rows(layout.view(l, 0, nullptr).block_rows, cache.ring_rows(l));
        DraftConfig draft = test_configs::make_draft(config, {4, 2, 32, 16, 8}, 2, 5, window, {0, 2, 3});
        draft.window_tokens[1] = 0;
        const KvCache with_draft(config, {max_context, step_rows, 1}, &draft);
        const cuda::KvLayout draft_layout(config.layers, {max_context, step_rows, 1}, &draft);
        check_rows(draft_layout.view(config.num_layers, 0, nullptr).block_rows, with_draft.ring_rows(config.num_layers));
        CHECK_EQ(with_draft.ring_rows(config.num_layers + 1), 0u);
        CHECK_EQ(draft_layout.sequence(0, nullptr).features.ring_rows, with_draft.feature_rows());
        CHECK_EQ(draft_layout.sequence(0, nullptr).features.width, 3 * config.hidden_size);
      }
}

TEST_CASE("partial results of attention that a row cannot count are refused") {
  cuda::AttentionParams row;
  row.num_rows = 1;
  row.num_q_heads = 8;
  row.v_head_dim = 16;
  row.split_keys = 64;
  row.max_context = 1u << 20;
  CHECK_EQ(cuda::row_partial_floats(row), (1u << 14) * 8 * 18);
  row.max_context = 1u << 30;
  CHECK_EQ(cuda::row_partial_floats(row), (1u << 24) * 8 * 18);
  row.num_q_heads = 16;
  CHECK_THROWS(capacity, "Lower max_context", cuda::row_partial_floats(row));
}

TEST_CASE("sizes that a kernel does not take are refused when the engine is opened, before the weights are copied") {
  const auto refused = [](const std::string& needle, const std::function<void(ModelConfig&)>& change) {
    ModelConfig config = model().config;
    change(config);
    const DeviceModel other(config);
    const Plan plan = Plan::build(config, device_plan_options(2, 4, 4));
    const auto device = open_test_device();
    const uint64_t all = device->free_bytes_left;
    CHECK_THROWS(unsupported_shape, needle, cuda::make_cuda_executor(device, other.pack(), config, {&plan}, {}));
    CHECK_EQ(device->free_bytes_left, all);
  };
  refused("v_head_dim: expected a multiple of 16, 16 .. 128, got 144",
          [](ModelConfig& c) { set_four_layers(c, {8, 2, 48, 144, 16}); });
  refused("layer 0: expected at most 16 q heads per kv head, got 20",
          [](ModelConfig& c) { set_four_layers(c, {40, 2, 48, 32, 16}); });
  refused("experts_per_token: expected 1 .. 32, got 33", [](ModelConfig& c) {
    c.num_experts = 34;
    c.experts_per_token = 33;
  });
}

TEST_CASE("logits come to the host only where somebody looks at them") {
  const auto device = open_test_device();
  const auto engine = open_engine(device);
  Session session(engine, kSmall);
  const Tokens prompt = random_tokens(model().config, 3, 1);
  const uint64_t logit_bytes = 4 * engine->decode_plan().buffers()[kLogits].cols;
  const auto received_per_step = [&](auto change) {
    GenerateOptions options = greedy(4);
    change(options.sampling);
    session.reset();
    const uint64_t before = device->num_bytes_received;
    session.generate(prompt, options);
    return (device->num_bytes_received - before) / 4;
  };
  const uint64_t tokens_only = received_per_step([](SamplingParams&) {});
  CHECK_EQ(received_per_step([](SamplingParams& s) { s.temperature = 0.8f; }), tokens_only);
  CHECK_EQ(received_per_step([](SamplingParams& s) { s.want_logprob = true; }), tokens_only + logit_bytes);
  std::vector<float> logits;
  session.logits(prompt, logits);
  CHECK_EQ(logits.size(), 3 * engine->config().vocab_size);
}

TEST_CASE("memory: what is missing and what to lower; all of it comes back") {
  const auto device = open_test_device();
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
    const uint64_t after_step = device->free_bytes_left, kv_bytes = session.kv_bytes();
    session.reset();
    CHECK_EQ(session.kv_bytes(), kv_bytes);
    CHECK_EQ(device->free_bytes_left - after_step, all - weight_bytes - left);
    CHECK(session.generate(random_tokens(model().config, 3, 1), greedy(2)).token_ids == tokens);
    GenerateOptions wants_lists = greedy(2);
    wants_lists.sampling.logit_bias.assign(100, {1, 0.5f});
    for (int32_t i = 0; i < 100; ++i) wants_lists.sampling.logit_bias[static_cast<size_t>(i)].token_id = i;
    const uint64_t before_lists = std::exchange(device->free_bytes_left, 100);
    CHECK_THROWS(out_of_memory, "biases, masked ids, token counts and text of a request: expected ",
                 session.generate(random_tokens(model().config, 3, 1), wants_lists));
    device->free_bytes_left = before_lists;
    CHECK(session.generate(random_tokens(model().config, 3, 1), greedy(2)).token_ids == tokens);
  }
  CHECK_EQ(device->free_bytes_left, all);
}

TEST_CASE("where operands lie is asked once per session; those of another GPU are refused by name") {
  const auto device = open_test_device();
  const auto engine = open_engine(device);
  CHECK_EQ(device->num_places_checked, 0u);
  Session session(engine, kSmall);
  const uint64_t of_session = device->num_places_checked;
  CHECK(of_session > 0);
  session.generate(random_tokens(model().config, 3, 1), greedy(2));
  CHECK_EQ(device->num_places_checked, of_session);

  struct Elsewhere : EmulatedStepDevice {
    void check_operand(const char* where, const char* name, const void*) const override {
      cuda::check_place(where, name, {cuda::MemoryPlace::Kind::device, 1}, 0);
    }
  };
  const auto other = open_engine(std::make_shared<Elsewhere>());
  CHECK_THROWS(invalid_argument, ": expected memory of device 0, got memory of device 1", Session(other, kSmall));
}

TEST_CASE("a step that does not come back, or that the device loses, stops the executor") {
  const auto device = open_test_device();
  const Tokens tokens = random_tokens(model().config, 4, 2);
  Session stuck(open_engine(device), kSmall);
  device->is_stuck = true;
  CHECK_THROWS(timeout, "the GPU did not end a step in 60 s", stuck.generate(tokens, greedy(2)));
  device->is_stuck = false;
  CHECK_THROWS(timeout, "stopped for good: the GPU did not", stuck.generate(tokens, greedy(2)));
  const auto lost = open_test_device();
  Session session(open_engine(lost), kSmall);
  lost->loss = "an illegal address";
  CHECK_THROWS(device_lost, "an illegal address", session.generate(tokens, greedy(2)));
  CHECK_THROWS(device_lost, "stopped for good: an illegal address", session.generate(tokens, greedy(2)));
}

TEST_CASE("a launch that was refused leaves the executor usable") {
  const auto device = open_test_device();
  const Tokens tokens = random_tokens(model().config, 4, 2);
  Session session(open_engine(device), kSmall);
  const Tokens whole = session.generate(tokens, greedy(4)).token_ids;
  const uint64_t num_launches = device->num_launches;
  device->max_resident_blocks = 1;
  const char* needle = "expected at most 1, which 8 multiprocessors hold at the same time, got 2. Make a plan with fewer";
  CHECK_THROWS(unavailable, needle, session.generate(tokens, greedy(4)));
  std::vector<float> logits;
  CHECK_THROWS(unavailable, needle, session.logits(tokens, logits));
  CHECK_EQ(device->num_launches, num_launches);
  device->max_resident_blocks = 2;
  CHECK(session.generate(tokens, greedy(4)).token_ids == whole);
}

TEST_CASE("a launch for which others leave no room at the moment, and one that CUDA refuses for another reason") {
  for (const int status : {cuda::kCooperativeLaunchTooLarge, cuda::kLaunchOutOfResources}) {
    const auto device = open_test_device();
    const Tokens tokens = random_tokens(model().config, 4, 2);
    Session session(open_engine(device), kSmall);
    const Tokens whole = session.generate(tokens, greedy(4)).token_ids;
    device->launch_status = status;
    const std::string needle =
        "got 2, which CUDA refused (error " + std::to_string(status) + "). End the other processes that hold";
    CHECK_THROWS(unavailable, needle, session.generate(tokens, greedy(4)));
    const bool may_be_the_block = status == cuda::kLaunchOutOfResources;
    CHECK_THROWS(unavailable, may_be_the_block ? "more registers or threads than" : "with fewer workers.",
                 session.generate(tokens, greedy(4)));
    device->launch_status = 0;
    CHECK(session.generate(tokens, greedy(4)).token_ids == whole);
  }
  for (const int status : {0, 1, 700, 719}) cuda::check_room(status, 132);  // not for this check
}

TEST_CASE("the seed of delays comes from the environment, and is a number") {
  constexpr const char* kName = "MIMO_RT_CUDA_DELAY_SEED";
  const auto seed_of_launch = [&] {
    const auto device = open_test_device();
    Session session(open_engine(device), kSmall);
    session.generate(random_tokens(model().config, 3, 1), greedy(1));
    return device->delay_seed;
  };
  CHECK_EQ(seed_of_launch(), 0u);
  setenv(kName, "4000000007", 1);
  CHECK_EQ(seed_of_launch(), 4'000'000'007u);
  for (const char* wrong : {"", "x", "3 ", "-1", "4294967296"}) {
    setenv(kName, wrong, 1);
    CHECK_THROWS(invalid_argument, concat(kName, ": expected a number of 32 bits, got '", wrong, "'"), open_engine());
  }
  unsetenv(kName);
}

TEST_CASE("a plan that the executor was not made for is refused, and those it was made for go on") {
  const Tokens tokens = random_tokens(model().config, 4, 2);
  StepRunner runner(model(), Plan::build(model().config, device_plan_options(2, 4, 4)));
  const StepRows rows(tokens, 0, 0, 4);
  for (const Plan& other : {Plan::build(model().config, device_plan_options(2, 4, 4)),
                            Plan::build(model().config, device_plan_options(3, 4, 4))})
    CHECK_THROWS(invalid_argument, "plan: expected one of those given to the executor, got another",
                 runner.executor->run(other, runner.cache, rows.input, runner.output));
  CHECK(runner.run(rows.input));
}

TEST_CASE("options that the GPU cannot serve are refused before anything is loaded") {
  const auto device = open_test_device();
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
  refused(ErrorCode::invalid_argument, "num_threads: expected 0..8, the multiprocessors of emulated, got 9",
          [](EngineOptions& o) { o.num_threads = 9; });
  refused(ErrorCode::unavailable, "activations: expected bf16", [](EngineOptions& o) { o.activations = "int8"; });
  CHECK_EQ(open_engine(device, options_for(0))->num_workers(), 8u);
  const Plan plan = Plan::build(model().config, device_plan_options(3, 4, 4));
  device->num_sms = 2;
  CHECK_THROWS(invalid_argument, "num_workers: expected at most 2",
               cuda::make_cuda_executor(device, model().pack(), model().config, {&plan}, {}));
  const Plan other = Plan::build(model().config, device_plan_options(2, 4, 4));
  CHECK_THROWS(invalid_argument, "plan: expected one for 3 workers, got 2",
               cuda::make_cuda_executor(open_test_device(), model().pack(), model().config, {&plan, &other}, {}));
}

TEST_CASE("a note for every option that was set and is not followed") {
  const auto notes_with = [](auto change) {
    EngineOptions options = options_for(2);
    change(options);
    return open_engine(open_test_device(), options)->notes();
  };
  const auto has_note = [&](const std::string& note, auto change) {
    const std::vector<std::string> notes = notes_with(change);
    CHECK(notes.size() == 1 && notes[0].starts_with(note));
  };
  CHECK(notes_with([](EngineOptions&) {}).empty());  // control
  CHECK(notes_with([](EngineOptions& o) {
          o.max_decode_tokens = 3;
          o.prefill_chunk_tokens = 64;
          o.timeout_ms = 3000;
        }).empty());
  has_note("max_decode_tokens is 8, not 9:", [](EngineOptions& o) { o.max_decode_tokens = 9; });
  has_note("prefill_chunk_tokens is 64, not 65:", [](EngineOptions& o) { o.prefill_chunk_tokens = 65; });
  has_note("timeout_ms is 3000, not 3001:", [](EngineOptions& o) { o.timeout_ms = 3001; });
  has_note("packed_cache is not used:", [](EngineOptions& o) { o.packed_cache = "auto"; });
  CHECK(notes_with([](EngineOptions& o) { o.draft = "auto"; }).empty());  // drafts come from the text
  CHECK_EQ(open_engine(open_test_device(), options_for(2))->options().timeout_ms, 3000u);
}

TEST_CASE("the backend says why there is no GPU, or which one there is") {
  const auto reason = [](const CudaDevices& devices, bool is_available) {
    const Backend backend = cuda_backend(devices);
    CHECK_EQ(backend.available, is_available);
    return backend.reason;
  };
  const std::string both = "9.0 or 10.0";
  CHECK_EQ(reason({false, {}, "not built into this wheel", ""}, false), std::string("not built into this wheel"));
  CHECK_EQ(reason({true, {}, "no driver", both}, false), std::string("no driver"));
  CHECK_EQ(old_driver_text(13000, 12080), std::string("expected a driver for CUDA 13.0, got one for CUDA 12.8"));
  CHECK_EQ(old_driver_text(13000, 0), std::string("no CUDA driver on this machine"));
  const std::string compiled = ", which the kernels are compiled for, got ";
  CHECK_EQ(reason({true, {{"Old", 8, 9, 100, 1}}, "", both}, false),
           "expected a GPU with compute capability 9.0 or 10.0" + compiled + "Old (sm_89)");
  CHECK_EQ(reason({true, {{"Newer", 10, 0, 148, 1}}, "", "9.0"}, false),
           "expected a GPU with compute capability 9.0" + compiled + "Newer (sm_100)");
  CHECK_EQ(reason({true, {{"New", 9, 0, 132, 1}, {"Old", 8, 9, 1, 1}}, "", both}, true),
           std::string("one resident kernel on New (sm_90), 132 multiprocessors"));
}

CHECK_MAIN()
