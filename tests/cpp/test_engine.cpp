// The whole engine on small random models: every backend that this machine runs, plus its limits.
#include "check.h"
#include "core/pin.h"
#include "cpu/dispatch.h"
#include "engine/bandwidth.h"
#include "engine/timed_passes.h"
#include "engine/vector_peak.h"
#include "step_fixture.h"

#include <mimo_rt/device.h>
#include <mimo_rt/session.h>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <thread>

using namespace mimo_rt;

namespace {

using Tokens = std::vector<int32_t>;

std::vector<std::string> runnable_backends() {
  std::vector<std::string> names;
  for (const Backend& backend : list_backends())
    if (backend.available && backend.name != "cuda") names.push_back(backend.name);
  return names;
}

EngineOptions engine_options(const std::string& device, uint32_t chunk_tokens = 16) {
  EngineOptions options;
  options.device = device;
  options.num_threads = 2;
  options.max_decode_tokens = 4;
  options.prefill_chunk_tokens = chunk_tokens;
  return options;
}

std::shared_ptr<Engine> small_engine(const std::string& device, uint32_t chunk_tokens = 16) {
  return Engine::synthetic(fixture::small_quantised(), 3, engine_options(device, chunk_tokens));
}

GenerateOptions sampled(uint32_t max_tokens) {
  GenerateOptions options;
  options.sampling = {.temperature = 0.9f, .sample_top_k = 50, .repetition_penalty = 1.1f};
  options.max_tokens = max_tokens;
  options.ignore_eos = true;
  return options;
}

}  // namespace

TEST_CASE("logits are bit-equal for every step size, and tokens for every chunk size") {
  const Tokens tokens = fixture::random_tokens(fixture::small_quantised(), 70, 1);
  for (const std::string& backend : runnable_backends()) {
    const auto engine = small_engine(backend);
    CHECK_EQ(engine->backend(), backend);
    Session session(engine);
    std::vector<float> want, got, control;
    session.logits(tokens, want, 1);
    CHECK_EQ(want.size(), tokens.size() * engine->config().vocab_size);
    for (const uint32_t step : {3u, 4u, 16u}) {
      got.clear();
      session.logits(tokens, got, step);
      CHECK(fixture::bit_equal(want, got));
    }
    Tokens other = tokens;
    other[0] = (other[0] + 1) % 100;
    session.logits(other, control, 16);
    CHECK(!fixture::bit_equal(want, control));  // control: one token changes the logits

    const Tokens output = session.generate(tokens, sampled(20)).token_ids;
    Session chunked(small_engine(backend, 5));
    CHECK(chunked.generate(tokens, sampled(20)).token_ids == output);
  }
}

TEST_CASE("prefix reuse gives the tokens of a fresh session, past the windows' rings") {
  const ModelConfig config = fixture::small_quantised();
  const Tokens base = fixture::random_tokens(config, 120, 2);
  for (const std::string& backend : runnable_backends()) {
    const auto engine = small_engine(backend);
    Session session(engine, {.max_context = 200});
    for (const uint32_t kept : {120u, 119u, 60u, 30u, 110u, 118u, 1u}) {
      const Tokens prompt(base.begin(), base.begin() + kept);
      Session fresh(engine, {.max_context = 200});
      const GenerateResult want = fresh.generate(prompt, sampled(12));
      const GenerateResult got = session.generate(prompt, sampled(12));
      CHECK(got.token_ids == want.token_ids);
      CHECK_EQ(want.stats.num_cached_tokens, 0u);
    }
  }
}

TEST_CASE("two sessions on two threads give what they give alone") {
  const auto engine = small_engine("cpu");
  const Tokens prompt = fixture::random_tokens(engine->config(), 40, 4);
  Tokens want[2], got[2];
  for (uint64_t i = 0; i < 2; ++i)
    want[i] = Session(engine, {.sequence_id = i}).generate(prompt, sampled(25)).token_ids;
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 2; ++i)
    threads.emplace_back([&, i] {
      got[i] = Session(engine, {.sequence_id = i}).generate(prompt, sampled(25)).token_ids;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(got[0] == want[0] && got[1] == want[1]);
  CHECK(want[0] != want[1]);  // control: the sequence id keys the draws
}

TEST_CASE("statistics: bytes of a step lie between the dense part and all experts") {
  const auto engine = small_engine("cpu");
  const ModelConfig& config = engine->config();
  uint64_t num_moe = 0;
  for (const LayerConfig& layer : config.layers) num_moe += layer.is_moe;
  CHECK(engine->dense_bytes_per_step() > 0 && engine->expert_bytes() > 0);
  // Every packed byte is dense, an expert's, or of the embedding (BF16), apart from padding.
  const uint64_t experts = num_moe * config.num_experts * engine->expert_bytes();
  CHECK(engine->weight_bytes() > engine->dense_bytes_per_step() + experts);
  const uint64_t embed = 2ull * config.vocab_size * config.hidden_size;
  CHECK(engine->weight_bytes() < engine->dense_bytes_per_step() + experts + 2 * embed);
  Session session(engine);
  const auto result = session.generate(fixture::random_tokens(config, 9, 5), sampled(10));
  // One token per step activates experts_per_token experts in every MoE layer: exact.
  const double want = double(engine->dense_bytes_per_step() +
                             num_moe * config.experts_per_token * engine->expert_bytes());
  CHECK_EQ(result.stats.weight_bytes_per_step, want);
  CHECK_EQ(result.stats.bandwidth_fraction, 0.0);  // not measured yet
  const double gbs = engine->measure_bandwidth_gbs(0.05);
  CHECK(gbs > 0.1 && gbs < 10'000);
  const auto later = session.generate(fixture::random_tokens(config, 9, 6), sampled(5));
  CHECK(later.stats.bandwidth_fraction > 0);
}

TEST_CASE("bandwidth: what is called between its parts may generate") {
  const auto engine = small_engine("cpu");
  Session session(engine);
  uint32_t num_tokens = 0;
  engine->measure_bandwidth_gbs(0.01, [&] {
    num_tokens += static_cast<uint32_t>(session.generate(fixture::random_tokens(engine->config(), 9, 5), sampled(3)).token_ids.size());
  });
  CHECK_EQ(num_tokens, 3u);
}

TEST_CASE("bandwidth: threads share the ranges, every byte once") {
  const std::vector<uint8_t> data(10'000);
  const uint8_t* begin = data.data();
  const ReadRange ranges[] = {{begin, 6400}, {begin + 6400, 64}, {begin + 6464, 100}};
  for (const uint32_t parts : {1u, 2u, 3u, 7u, 200u}) {
    std::vector<int> reads(data.size());
    for (uint32_t part = 0; part < parts; ++part)
      for (const ReadRange& range : share_of(ranges, part, parts))
        for (uint64_t i = 0; i < range.bytes; ++i) ++reads[size_t(range.data - data.data()) + i];
    CHECK(std::count(reads.begin(), reads.begin() + 6564, 1) == 6564);
    CHECK(std::count(reads.begin() + 6564, reads.end(), 0) == 10'000 - 6564);
  }
  CHECK(share_of(ranges, 0, 2)[0].bytes < 6400);  // control: one part alone is not all
  for (const uint32_t threads : {1u, 3u}) {
    const double gbs = measure_read_gbs(ranges, {.num_threads = threads, .seconds = 0.01});
    CHECK(gbs > 0.1 && gbs < 10'000);
  }
}

TEST_CASE("vector peak: operations of all threads, of what the backend multiplies with") {
  TimedPasses passes("test", {.num_threads = 3, .pin_threads = false}, [](uint32_t thread) { return 10u + thread; });
  for (int pass = 0; pass < 2; ++pass) {
    const TimedPasses::Result result = passes.run();
    CHECK_EQ(result.sum, 33u);
    CHECK(result.seconds > 0);
  }
  for (const cpu::CpuBackend& backend : cpu::cpu_backends()) {
    if (!backend.kernels || !backend.supported) continue;
    const int bf16 = static_cast<int>(PackedFormat::bf16);
    const std::string source = backend.kernels->product_source(bf16);
    // No processor begins more than three vector instructions in a cycle, or has 8 GHz.
    const double per_instruction = source == "vdpbf16ps" ? 64 : backend.name == std::string("cpu-avx512") ? 32 : 16;
    const auto engine = small_engine(backend.name);
    const std::optional<VectorPeak> peak = engine->measure_vector_peak(0.01);
    CHECK(peak && peak->source.starts_with(source));
    // What it does not speak for, it names.
    const bool has_digits = backend.name == std::string("cpu-avx2");
    CHECK_EQ(peak && peak->source.find("MXFP4") != std::string::npos, has_digits);
    CHECK(peak && peak->gflops > 0.01 && peak->gflops < engine->num_workers() * per_instruction * 3 * 8);
  }
  EngineOptions int8 = engine_options("cpu");
  int8.activations = "int8";
  CHECK(!Engine::synthetic(fixture::small_quantised(), 3, int8)->measure_vector_peak(0.01));
  CHECK(!small_engine("ref")->measure_vector_peak(0.01));
  CHECK_THROWS(invalid_argument, "seconds", small_engine("cpu")->measure_vector_peak(0));
}

TEST_CASE("tracing: the last step as a Chrome trace, with the same tokens") {
  const auto engine = small_engine("cpu");
  CHECK_THROWS(invalid_argument, "step", engine->trace_json());
  Session session(engine);
  const Tokens prompt = fixture::random_tokens(engine->config(), 9, 5);
  const Tokens want = session.generate(prompt, sampled(3)).token_ids;
  CHECK(engine->trace_json().find("predicted") != std::string::npos);
  engine->set_tracing(true);
  CHECK(session.generate(prompt, sampled(3)).token_ids == want);
  const std::string trace = engine->trace_json();
  CHECK(trace.find("measured") != std::string::npos);
  CHECK(trace.find("attention") != std::string::npos);
}

TEST_CASE("options out of range and devices that are not there") {
  const auto open = [](auto change) {
    EngineOptions options = engine_options("cpu");
    change(options);
    Engine::synthetic(fixture::small_quantised(), 3, options);
  };
  CHECK_THROWS(unavailable, "backend 'cuda': ", open([](auto& o) { o.device = "cuda"; }));
  CHECK_THROWS(invalid_argument, "'cuda:1'", open([](auto& o) { o.device = "cuda:1"; }));
  CHECK_THROWS(invalid_argument, "gpu", open([](auto& o) { o.device = "gpu"; }));
  CHECK_THROWS(invalid_argument, "exact", open([](auto& o) { o.exact = true; }));
  CHECK_THROWS(invalid_argument, "draft: expected", open([](auto& o) { o.draft = ""; }));
  CHECK_THROWS(invalid_argument, "num_threads", open([](auto& o) { o.num_threads = 1025; }));
  CHECK_THROWS(invalid_argument, "timeout_ms", open([](auto& o) { o.timeout_ms = 0; }));
  CHECK_THROWS(invalid_argument, "max_decode_tokens",
               open([](auto& o) { o.max_decode_tokens = 0; }));
  CHECK_THROWS(invalid_argument, "prefill_chunk_tokens",
               open([](auto& o) { o.prefill_chunk_tokens = 4097; }));
  ModelConfig torn = fixture::small_quantised();
  torn.layers.pop_back();
  CHECK_THROWS(unsupported_shape, "layers: expected",
               Engine::synthetic(torn, 3, engine_options("cpu")));
  const auto absent = std::filesystem::temp_directory_path() / "mimo_rt_no_such_model";
  CHECK_THROWS(io, "mimo_rt_no_such_model", Engine::open(absent, engine_options("cpu")));
  const auto engine = small_engine("cpu");
  CHECK_THROWS(invalid_argument, "seconds", engine->measure_bandwidth_gbs(0));
  CHECK_THROWS(invalid_argument, "seconds", engine->measure_bandwidth_gbs(1e9));
}

TEST_CASE("far more workers than cores: the same tokens, and a note") {
  const auto run = [](uint32_t num_threads) {
    EngineOptions options = engine_options("cpu");
    options.num_threads = num_threads;
    const auto engine = Engine::synthetic(fixture::small_quantised(), 3, options);
    Session session(engine);
    const bool has_note = !engine->notes().empty();
    CHECK_EQ(has_note, num_threads > num_usable_cores());
    return session.generate(std::vector<int32_t>{1, 2, 3, 4, 5}, sampled(6)).token_ids;
  };
  CHECK(run(40) == run(1));
}

namespace {

/// From now on this thread and those that it starts may not be bound to cores. False: the system has no such rule.
bool forbid_binding() {
  sock_filter rules[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                         BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_sched_setaffinity, 0, 1),
                         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog program{.len = std::size(rules), .filter = rules};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

}  // namespace

TEST_CASE("workers that the system does not let be bound: the same tokens, and a note") {
  EngineOptions options = engine_options("cpu");
  options.num_threads = std::min(2u, num_usable_cores());
  const auto run = [&](std::vector<std::string>& notes) {
    const auto engine = Engine::synthetic(fixture::small_quantised(), 3, options);
    notes = engine->notes();
    return Session(engine).generate(std::vector<int32_t>{1, 2, 3, 4, 5}, sampled(6)).token_ids;
  };
  std::vector<std::string> notes, notes_unbound;
  const std::vector<int32_t> tokens = run(notes);
  CHECK(notes.empty());
  std::thread([&] {
    const bool has_rule = forbid_binding();
    CHECK(run(notes_unbound) == tokens);
    const bool would_bind = !cores_to_pin(options.num_threads).empty();  // not with a CPU quota
    CHECK_EQ(notes_unbound.size(), has_rule && would_bind ? 1u : 0u);
    for (const std::string& note : notes_unbound) {
      CHECK(note.find("pin_threads: " + std::to_string(options.num_threads) + " of ") == 0);
      CHECK(note.find("the system refuses core") != std::string::npos);
    }
    options.pin_threads = false;
    CHECK(run(notes_unbound) == tokens);
    CHECK(notes_unbound.empty());  // control: nobody asked
  }).join();
}

CHECK_MAIN()
