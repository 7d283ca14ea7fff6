// Whole rounds of the exact tier (exact_weights.h) on the emulated GPU (or a real one): logits, drafts and tokens of the
// CPU's executors, bit for bit, however sums are made; and what other weights, windows or edges change.
#include "exact_model.h"
#include "plan_mutator.h"

#include <algorithm>
#include <set>

using namespace mimo_rt;
using namespace fixture;

namespace {

using Tokens = std::vector<int32_t>;
constexpr uint32_t kContext = 128;

const DeviceDraft& model() {
  static const ModelConfig target = exact::target_config();
  static const DeviceDraft model = exact::make_model(target, exact::draft_config(target));
  return model;
}

struct Wanted {
  uint32_t prompt_tokens = 23, num_tokens = 5;  ///< more than a window
  SamplingParams params = {.temperature = 0.0f};
  DraftOptions draft = {.mode = DraftOptions::Mode::fixed};
  uint32_t num_workers = 2, chunk = 8;
  std::function<Plan(const Plan&)> change_round = {};
};

struct Outcome {
  std::vector<float> logits, draft_logits;  ///< of the prompt; of the last round's drafts
  Tokens tokens;
  DraftStats stats;
  bool operator==(const Outcome& other) const {
    return bit_equal(logits, other.logits) && bit_equal(draft_logits, other.draft_logits) && tokens == other.tokens &&
           !std::memcmp(&stats, &other.stats, sizeof stats);
  }
};

DraftRunOptions options_of(const Wanted& wanted) {
  DraftRunOptions options;
  options.num_workers = wanted.num_workers;
  options.chunk = wanted.chunk;
  options.max_context = kContext;
  options.draft = wanted.draft;
  options.params = wanted.params;
  options.change_round_plan = wanted.change_round;
  return options;
}

/// A prompt in chunks, then rounds.
Outcome run(const DeviceDraft& of, const DraftRunOptions& options, const Wanted& wanted) {
  DraftRun run(of.host->weights, of.host->draft, options);
  Outcome out;
  const int32_t anchor = run.feed(random_tokens(run.config, wanted.prompt_tokens, 5));
  out.tokens = run.decode_rounds(anchor, wanted.num_tokens);
  out.logits = run.logits;
  out.draft_logits = run.draft_logits();
  out.stats = run.width.stats();
  return out;
}

Outcome run_cpu(const Wanted& wanted, const std::string& backend = "cpu-generic", const DeviceDraft& of = model()) {
  DraftRunOptions options = options_of(wanted);
  options.backend = backend;
  return run(of, options, wanted);
}

Outcome run_device(const Wanted& wanted, const std::shared_ptr<cuda::StepDevice>& device = open_test_device(),
                   uint32_t delay_seed = 0, const DeviceDraft& of = model()) {
  DraftRunOptions options = options_of(wanted);
  options.make_executor = [&](const std::vector<const Plan*>& plans, ExecutorOptions given) {
    given.delay_seed = delay_seed;
    return cuda::make_cuda_executor(device, of.target.pack(), of.target.config, plans, given, of.pack());
  };
  return run(of, options, wanted);
}

/// The prompt fills more than the 64 keys of one split of attention.
const Wanted kLong{.prompt_tokens = 67, .num_tokens = 6, .chunk = 16};

/// Rounds whose tokens and drafts are drawn.
Wanted drawn() {
  Wanted wanted{.num_tokens = 6, .params = {.temperature = 6.0f, .sample_top_k = 40, .seed = 7}};
  wanted.draft.proposal = DraftOptions::Proposal::sampled;
  return wanted;
}

/// Another sign of the first `count` of a tensor's weights that are not zero; each has `bits` bits.
DeviceDraft damaged_model(const std::string& tensor, uint32_t bits, uint32_t count = 1) {
  return exact::make_model(model().target.config, model().config, [=](const std::string& name, std::string& bytes) {
    uint32_t left = name == tensor ? count : 0;
    for (uint64_t sign = bits - 1; left != 0 && sign < 8 * bytes.size(); sign += bits) {
      bool is_zero = true;
      for (uint64_t bit = sign + 1 - bits; bit < sign; ++bit) is_zero &= !(bytes[bit / 8] >> bit % 8 & 1);
      if (is_zero) continue;
      bytes[sign / 8] = static_cast<char>(bytes[sign / 8] ^ 1 << sign % 8);
      --left;
    }
  });
}

}  // namespace

TEST_CASE("every CPU executor gives the same bits; the text is not trivial") {
  Wanted wanted = kLong;
  wanted.num_tokens = 24;
  const Outcome expected = run_cpu(wanted, "ref");
  for (const std::string& backend : runnable_cpu_backends()) CHECK(run_cpu(wanted, backend) == expected);
  wanted.chunk = 5, wanted.num_workers = 3;
  CHECK(bit_equal(run_cpu(wanted).logits, expected.logits));
  CHECK(run_cpu(wanted).tokens == expected.tokens);
  const std::set<int32_t> distinct(expected.tokens.begin(), expected.tokens.end());
  std::printf("  %zu distinct tokens of %u in %u rounds\n", distinct.size(), wanted.num_tokens,
              static_cast<uint32_t>(expected.stats.num_rounds));
  CHECK(distinct.size() >= 12);
  CHECK(expected.stats.num_accepted_tokens >= 3 && expected.stats.num_rounds >= 12);
}

TEST_CASE("heads find the token that they look for") {
  DraftRun run(model().host->weights, model().host->draft, options_of({}));
  const Tokens tokens = random_tokens(run.config, 40, 5);
  run.feed(tokens);
  const std::vector<bf16_t> features = run.features(0, 40);
  constexpr uint32_t kShift = 12;  // of the head whose values are copied
  const auto at = [&](uint32_t pos, uint32_t dim) { return features[uint64_t{pos} * 3 * exact::kHidden + dim]; };
  for (uint32_t pos = kShift; pos < tokens.size(); ++pos)
    for (uint32_t i = 0; i < exact::kNumCopies; ++i) CHECK_EQ(at(pos, exact::copy(i)), at(pos - kShift, exact::code(i)));
}

TEST_CASE("all experts, and the last key of a window, are in the text") {
  const Wanted wanted{.prompt_tokens = 40, .num_tokens = 1};
  const Outcome right = run_cpu(wanted);
  for (uint32_t expert = 0; expert < model().target.config.num_experts; ++expert) {
    const std::string name = "model.layers.3.mlp.experts." + std::to_string(expert) + ".down_proj.weight";
    CHECK(!bit_equal(run_cpu(wanted, "cpu-generic", damaged_model(name, 4, ~0u)).logits, right.logits));
  }
  ModelConfig narrow = model().target.config;
  --narrow.layers[1].window_tokens;
  const Outcome other = run_cpu(wanted, "cpu-generic", exact::make_model(narrow, model().config));
  const auto first = std::ranges::mismatch(right.logits, other.logits).in1;
  CHECK_EQ((first - right.logits.begin()) / narrow.vocab_size, narrow.layers[1].window_tokens);
}

TEST_CASE("a prompt of several steps, and rounds") { CHECK(run_device(kLong) == run_cpu(kLong)); }

TEST_CASE("random schedules, blocks that are late, and sums that are cut off as Hopper's") {
  Wanted wanted;
  const Outcome expected = run_cpu(wanted);
  for (const uint32_t seed : {1u, 2u}) {
    const auto device = open_test_device(seed);
#if !defined(MIMO_RT_TEST_ON_GPU)
    device->cuts_sums = seed == 2;
#endif
    wanted.num_workers = 1 + seed;
    CHECK(run_device(wanted, device, seed - 1) == expected);
  }
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("the sums of another model are seen to be cut off") {
  const DeviceModel other(first_layers(1));
  const Tokens tokens = random_tokens(other.config, 4, 3);
  std::vector<float> logits[2];
  for (const bool cuts_sums : {false, true}) {
    const auto device = open_test_device();
    device->cuts_sums = cuts_sums;
    StepRunner engine(other, Plan::build(other.config, device_plan_options(2, 4, 4)), 1, device, 1000);
    logits[cuts_sums] = feed(*engine.executor, engine.plan, engine.cache, tokens, 4, other.config.vocab_size);
  }
  CHECK(!bit_equal(logits[0], logits[1]));
  CHECK(relative_distance(logits[0], logits[1]) < 0.02);
}
#endif

TEST_CASE("drawn tokens and drawn drafts") {
  const Wanted wanted = drawn();
  const Outcome expected = run_cpu(wanted);
  CHECK(run_device(wanted) == expected);
  CHECK(expected.tokens != run_cpu({.num_tokens = wanted.num_tokens}).tokens);
}

TEST_CASE("one weight of the device that is another is seen") {
  const Wanted wanted{.prompt_tokens = 9, .num_tokens = 2};
  const Outcome right = run_cpu(wanted);
  for (const auto& [name, bits] : {std::pair{"model.layers.1.mlp.experts.5.down_proj.weight", 4u},
                                   {"model.layers.1.self_attn.qkv_proj.weight", 8u},
                                   {"layers.1.mlp.down_proj.weight", 16u}}) {  // of the draft
    const DeviceDraft damaged = damaged_model(name, bits);
    const Outcome found = run_device(wanted, open_test_device(), 0, damaged);
    CHECK(found != right);
    CHECK_EQ(bit_equal(found.logits, right.logits), bits == 16u);
  }
}

#if !defined(MIMO_RT_TEST_ON_GPU)  // what tasks without their inputs read may be anything
TEST_CASE("a task that does not wait for its input is seen") {
  Wanted wanted{.prompt_tokens = 9, .num_tokens = 2, .num_workers = 3};
  const Outcome right = run_cpu(wanted);
  wanted.change_round = [](const Plan& plan) { return without_waits(plan, TaskKind::o_proj); };
  CHECK(run_device(wanted) != right);
}
#endif

CHECK_MAIN()
