// Launches of many rounds on the emulated GPU (or a real one), without a draft: the tokens of steps,
// whatever ends them and however many rounds a launch has; and when things go wrong.
#include "device_step_fixture.h"
#include "engine/round.h"
#include "plan_mutator.h"

#include <algorithm>
#include <functional>
#include <stdexcept>

using namespace mimo_rt;
using namespace fixture;

namespace {

using Tokens = std::vector<int32_t>;

const DeviceModel& model() {
  static const DeviceModel model(first_layers(2));
  return model;
}

Plan make_plan(bool is_round) {
  PlanOptions options = device_plan_options(2, is_round ? 1 : 4, is_round ? 1 : 4);
  options.is_round = is_round;
  return Plan::build(model().config, options);
}

/// What is wanted of a generation that follows an anchor.
struct Wanted {
  SamplingParams params = {.temperature = 0.0f};
  Tokens stop_ids = {};
  uint64_t min_tokens = 0, max_tokens = 12;
  uint32_t max_context = 40;
  uint32_t idle_us = 2000;
};

constexpr int32_t kAnchor = 17;

/// One sequence with a prompt in its cache.
class Runner {
 public:
  explicit Runner(const Wanted& wanted_, uint64_t seed = 0, const Plan& round = make_plan(true),
                  uint32_t timeout_ms = 10'000, uint32_t delay_seed = 0)
      : wanted(wanted_),
        round_plan(round),
        device(open_test_device(seed)),
        cache(model().config, {wanted_.max_context, 4, 1}),
        counts(model().config.vocab_size) {
    executor = cuda::make_cuda_executor(device, model().pack(), model().config, {&step_plan, &round_plan},
                                        {.timeout_ms = timeout_ms,
                                         .idle_us = wanted.idle_us,
                                         .delay_seed = delay_seed});
    cache.reserve(0, wanted.max_context);
    const Tokens prompt = random_tokens(model().config, 7, 3);
    for (uint32_t begin = 0; begin < prompt.size(); begin += 4) {
      StepRows rows(prompt, 0, begin, std::min<uint32_t>(begin + 4, 7));
      StepOutput output;
      executor->run(step_plan, cache, rows.input, output);
    }
    for (const int32_t id : prompt) ++counts[static_cast<size_t>(id)];
    ++counts[kAnchor];
    RoundRequest request;
    request.params = &wanted.params;
    request.sequence_id = kSequence;
    request.token_counts = counts.data();
    request.stop_ids = wanted.stop_ids;
    request.min_tokens = wanted.min_tokens;
    request.max_tokens = wanted.max_tokens;
    request.max_context = wanted.max_context;
    state = std::make_unique<RoundState>(request, width, model().config.vocab_size, 1);
    state->block[0] = kAnchor;
    state->position = 7;
    state->num_output = 1;
  }

  /// Plain decoding; `end` says why it ended.
  Tokens decode_in_steps() {
    std::vector<std::max_align_t> scratch(sampler_scratch_bytes(counts.size()) / sizeof(std::max_align_t) + 1);
    Tokens tokens;
    int32_t anchor = kAnchor;
    for (uint32_t position = 7;; ++position) {
      const uint64_t num_output = 1 + tokens.size();
      end = num_output >= wanted.max_tokens ? RoundEnd::max_tokens : RoundEnd::context;
      if (num_output >= wanted.max_tokens || position >= wanted.max_context) return tokens;
      SampleRequest request{.params = &wanted.params, .token_counts = counts.data(), .sequence_id = kSequence,
                            .position = position + 1, .scratch = scratch.data()};
      request.masked_ids = wanted.stop_ids.data();
      if (num_output < wanted.min_tokens) request.num_masked_ids = static_cast<uint32_t>(wanted.stop_ids.size());
      const uint32_t seq = 0, row = 0;
      StepInput input;
      input.num_tokens = input.num_logit_rows = 1;
      input.token_ids = &anchor;
      input.seq_idx = &seq;
      input.positions = &position;
      input.logit_rows = &row;
      input.sample = &request;
      SampleResult result;
      StepOutput output;
      output.sampled = &result;
      executor->run(step_plan, cache, input, output);
      end = RoundEnd::bad_logits;
      if (result.token_id < 0) return tokens;
      tokens.push_back(anchor = result.token_id);
      logprobs.push_back(result.logprob);
      ++counts[static_cast<size_t>(anchor)];
      end = RoundEnd::stop_id;
      if (std::binary_search(wanted.stop_ids.begin(), wanted.stop_ids.end(), anchor)) return tokens;
    }
  }

  /// Rounds until something other than `max_rounds` ends them.
  Tokens decode_in_rounds(uint32_t max_rounds = ~0u) {
    state->max_rounds = max_rounds;
    do {
      state->begin();
      executor->run_rounds(round_plan, cache, *state, [&] { poll(); });
      if (on_turn && state->end == RoundEnd::max_rounds) on_turn();
    } while (state->end == RoundEnd::max_rounds);
    end = state->end;
    return tokens_out;
  }
  /// A round at a time, for a caller that comes back.
  Tokens stream() {
    state->comes_back = true;
    return decode_in_rounds(1);
  }
  void poll() {
    for (; num_read < state->ring.num_pushed(); state->ring.release(++num_read)) {
      tokens_out.push_back(state->ring[num_read].token_id);
      logprobs.push_back(state->ring[num_read].logprob);
    }
    if (on_poll) on_poll();
  }

  static constexpr uint64_t kSequence = 42;
  const Wanted wanted;
  const Plan step_plan = make_plan(false), round_plan;
  decltype(open_test_device()) device;
  KvCache cache;
  DraftWidth width{{}, 1};
  std::vector<uint32_t> counts;
  std::unique_ptr<Executor> executor;
  std::unique_ptr<RoundState> state;
  Tokens tokens_out;
  std::vector<float> logprobs;
  uint64_t num_read = 0;
  RoundEnd end = RoundEnd::running;
  std::function<void()> on_poll;
  std::function<void()> on_turn;  ///< the caller's, between two run_rounds
};

/// A step of another sequence.
struct OtherStep {
  OtherStep() { cache.reserve(0, 8); }
  void run(Runner& runner) {
    StepOutput output;
    runner.executor->run(runner.step_plan, cache, rows.input, output);
  }
  const Tokens text = random_tokens(model().config, 2, 5);
  const StepRows rows{text, 0, 0, 2};
  KvCache cache{model().config, {8, 4, 1}};
};

/// All but one of the tokens, or all.
Tokens all_ids(int32_t but = -1) {
  Tokens ids;
  for (int32_t id = 0; id < static_cast<int32_t>(model().config.vocab_size); ++id)
    if (id != but) ids.push_back(id);
  return ids;
}

/// Rounds emit what steps emit, and end for the same reason, with the same counts.
void check_equal(const Wanted& wanted, RoundEnd end, uint32_t max_rounds = ~0u, uint64_t seed = 0) {
  Runner steps(wanted), rounds(wanted, seed);
  const Tokens expected = steps.decode_in_steps();
  CHECK(rounds.decode_in_rounds(max_rounds) == expected);
  CHECK(rounds.end == end && steps.end == end);
  CHECK(rounds.counts == steps.counts);
  CHECK_EQ(rounds.state->num_output, 1 + expected.size());
  CHECK_EQ(rounds.state->position, 7 + expected.size());
}

Plan without_signal(TaskKind kind) {
  PlanMutator mutator(make_plan(true));
  for (auto& list : mutator.lists)
    for (Task& task : list)
      if (task.kind == kind) task.signal_counter = kNoCounter;
  return mutator.finish();
}

}  // namespace

TEST_CASE("greedy rounds emit the tokens of steps for every length of a launch, in every schedule") {
  check_equal({}, RoundEnd::max_tokens);
  for (const uint32_t max_rounds : {1u, 2u, 7u}) check_equal({}, RoundEnd::max_tokens, max_rounds);
  for (const uint64_t seed : {1u, 2u}) check_equal({.max_tokens = 4}, RoundEnd::max_tokens, ~0u, seed);
}

TEST_CASE("blocks that are late change no token") {
  Runner quiet({});
  const Tokens expected = quiet.decode_in_rounds();
  for (uint32_t delay_seed = 1; delay_seed <= 4; ++delay_seed) {
    Runner late({}, delay_seed / 3, make_plan(true), 10'000, delay_seed);
    CHECK(late.decode_in_rounds() == expected);
  }
#if !defined(MIMO_RT_TEST_ON_GPU)  // what tasks without their inputs read may be anything
  for (const TaskKind kind : {TaskKind::o_proj, TaskKind::expert_down}) {
    uint32_t num_wrong = 0;
    for (uint32_t delay_seed = 1; delay_seed <= 4; ++delay_seed) {
      Runner hasty({}, 0, without_waits(make_plan(true), kind), 10'000, delay_seed);
      num_wrong += hasty.decode_in_rounds() != expected;
    }
    CHECK(num_wrong != 0);
  }
#endif
}

TEST_CASE("sampled rounds emit the tokens of steps: filters, penalty, biases, masked stops") {
  const Wanted wanted{.params = {.temperature = 1.5f, .sample_top_p = 0.95f, .repetition_penalty = 1.3f, .seed = 4,
                                 .logit_bias = {{3, 2.0f}, {90, -1.0f}}},
                      .stop_ids = all_ids(3),
                      .min_tokens = 6};
  check_equal(wanted, RoundEnd::stop_id);  // token 3 alone until then
  Wanted free = wanted;
  free.stop_ids = {};
  for (const uint32_t max_rounds : {2u, 100u}) check_equal(free, RoundEnd::max_tokens, max_rounds);
  Runner one(free);
  free.params.seed = 5;
  Runner other(free);
  CHECK(one.decode_in_rounds() != other.decode_in_rounds());  // control
}

TEST_CASE("a stop id or the end of the context inside a launch ends it there, and the launch leaves") {
  Runner whole({});
  const Tokens tokens = whole.decode_in_steps();
  const auto count = static_cast<size_t>(std::find(tokens.begin(), tokens.end(), tokens[5]) - tokens.begin()) + 1;
  const Wanted stopping{.stop_ids = {tokens[5]}};
  check_equal(stopping, RoundEnd::stop_id);
  check_equal({.max_context = 12}, RoundEnd::context);
  Runner rounds(stopping);
  CHECK_EQ(rounds.decode_in_rounds().size(), count);
  CHECK_EQ(rounds.state->num_rounds, count);
  rounds.state->request.stop_ids = {};
  rounds.decode_in_rounds();  // epochs and counters go on from where the launch left
  CHECK(rounds.tokens_out == tokens);
#if !defined(MIMO_RT_TEST_ON_GPU)
  CHECK_EQ(rounds.device->num_epochs_launched, 2 + 2 * uint64_t{cuda::kMaxLaunchRounds});
#endif
}

TEST_CASE("logits without a finite value end the rounds as they end steps") {
  // Every token is a stop id, and stop ids are masked: nothing is left to draw.
  check_equal({.stop_ids = all_ids(), .min_tokens = 6}, RoundEnd::bad_logits);
  check_equal({.params = {.seed = 3}, .stop_ids = all_ids(), .min_tokens = 6}, RoundEnd::bad_logits);
}

TEST_CASE("logprobs are those of steps, from launches of one round") {
  const Wanted wanted{.params = {.seed = 9, .num_logprobs = 2, .want_logprob = true}, .max_tokens = 5};
  Runner steps(wanted), rounds(wanted);
  CHECK(rounds.decode_in_rounds() == steps.decode_in_steps());
  CHECK(rounds.logprobs == steps.logprobs && rounds.logprobs[0] < 0.0f);
  CHECK_EQ(rounds.state->ring[3].num_alternatives, 2u);
}

TEST_CASE("the caller gets tokens while a launch runs, stops it between two rounds, and goes on") {
  Runner steps({.max_tokens = 30, .max_context = 40});
  const Tokens expected = steps.decode_in_steps();
  Runner rounds({.max_tokens = 30, .max_context = 40});
  uint32_t num_polls = 0;
  rounds.on_poll = [&] {
    ++num_polls;
    if (rounds.tokens_out.size() >= 3) rounds.state->stop_requested = true;
  };
  rounds.decode_in_rounds();
  CHECK(rounds.end == RoundEnd::requested);
  const size_t num_before = rounds.tokens_out.size();
  CHECK(num_before >= 3 && num_before < 29 && num_polls > 3);
  CHECK_EQ(rounds.state->num_rounds, num_before);
  rounds.on_poll = [&] {
    if (rounds.tokens_out.size() > num_before) throw std::runtime_error("the caller's own");
  };
  std::string caught;
  try {
    rounds.decode_in_rounds();
  } catch (const std::runtime_error& error) {
    caught = error.what();
  }
  CHECK_EQ(caught, std::string("the caller's own"));
  rounds.on_poll = nullptr;
  rounds.poll();
  CHECK(rounds.tokens_out.size() < 29);
  CHECK(rounds.decode_in_rounds() == expected);
}

TEST_CASE("a launch runs no more rounds than the ring of tokens has room for; a full one ends the rounds") {
  Runner rounds({.max_tokens = 20});
  for (uint32_t i = 0; i + 3 < TokenRing::kCapacity; ++i) rounds.state->ring.push({});
  const auto run_unread = [&] {
    rounds.state->begin();
    rounds.executor->run_rounds(rounds.round_plan, rounds.cache, *rounds.state, {});
  };
  run_unread();
  CHECK(rounds.state->end == RoundEnd::requested);
  CHECK_EQ(rounds.state->num_rounds, 3u);
  CHECK_EQ(rounds.state->ring.free(), 0u);
  run_unread();
  CHECK_EQ(rounds.state->num_rounds, 0u);
  rounds.num_read = TokenRing::kCapacity - 3;
  Runner steps({.max_tokens = 20});
  CHECK(rounds.decode_in_rounds().empty());  // the state still sees a full ring: it ends before any poll
  rounds.poll();
  CHECK_EQ(rounds.tokens_out.size(), 3u);
  CHECK(rounds.decode_in_rounds() == steps.decode_in_steps());
}

#if !defined(MIMO_RT_TEST_ON_GPU)  // a real one may fill the ring before the host looks
TEST_CASE("a launch that the ring of tokens makes short does not wait after its last round") {
  const Wanted wanted{.idle_us = 5000};  // the emulator takes a wait of half of it for a livelock
  Runner steps(wanted), rounds(wanted);
  constexpr uint32_t kNumFree = 4;
  while (rounds.state->ring.free() > kNumFree) rounds.state->ring.push({});
  rounds.num_read = rounds.state->ring.num_pushed();  // they are released with the first token
  CHECK(rounds.decode_in_rounds() == steps.decode_in_steps());
  CHECK(rounds.end == RoundEnd::max_tokens);
  CHECK_EQ(rounds.device->num_launches, 2u + 2u);
  CHECK_EQ(rounds.device->num_epochs_launched, 2u + kNumFree + cuda::kMaxLaunchRounds);
}
#endif

TEST_CASE("a launch waits for the caller who comes back after every round, and leaves when that takes too long") {
  Runner steps({.max_tokens = 6});
  const Tokens expected = steps.decode_in_steps();
  for (const uint32_t idle_us : {2000u, 0u})
    for (const bool is_slow : {false, true}) {
      Runner rounds({.max_tokens = 6, .idle_us = idle_us}, is_slow);
      bool has_left = false;
      rounds.on_turn = [&] {
        if (idle_us == 0 || (is_slow && rounds.tokens_out.size() == 2)) has_left = rounds.device->wait(50'000'000);
      };
      CHECK(rounds.stream() == expected);
      CHECK(rounds.end == RoundEnd::max_tokens && rounds.counts == steps.counts);
      CHECK_EQ(has_left, is_slow || idle_us == 0);
#if !defined(MIMO_RT_TEST_ON_GPU)  // where the caller may be late without meaning it
      const uint64_t num_launches = rounds.device->num_launches - 2;  // of the prompt
      CHECK_EQ(num_launches, idle_us == 0 ? 5u : 1u + is_slow);
#endif
    }
}

TEST_CASE("a launch that waits gives the GPU to whoever wants it, and its caller goes on with another") {
  Runner steps({.max_tokens = 4});
  const Tokens expected = steps.decode_in_steps();
  Runner rounds({.max_tokens = 4});
  OtherStep other;
  rounds.on_turn = [&] {
    if (rounds.tokens_out.size() == 1) other.run(rounds);
  };
  CHECK(rounds.stream() == expected);
#if !defined(MIMO_RT_TEST_ON_GPU)
  CHECK_EQ(rounds.device->num_launches, 2u + 3u);
#endif
  Runner gone({.max_tokens = 4});  // nobody comes back
  gone.on_turn = [&] { throw std::runtime_error("the caller's own"); };
  try {
    gone.stream();
  } catch (const std::runtime_error&) {
  }
  CHECK_EQ(gone.tokens_out.size(), 1u);
}

TEST_CASE("a hang of a launch that waits is reported to whoever uses the GPU next") {
  for (const bool by_other : {false, true}) {
    Runner rounds({}, 0, without_signal(TaskKind::accept), kHangTimeoutMs);
    OtherStep other;
    rounds.on_turn = [&] {
      CHECK(rounds.device->wait(1'000'000'000));
      if (by_other) other.run(rounds);
    };
    CHECK_THROWS(timeout, "the end of the round", rounds.stream());
    CHECK_EQ(rounds.tokens_out.size(), 1u);
    CHECK_THROWS(timeout, "stopped for good", rounds.stream());
  }
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("a record of a round that is released to the GPU alone is not one") {
  for (const uint32_t round : {0u, 2u}) {
    Runner rounds({.max_tokens = 6});
    rounds.device->fault = emulation::Skip::system_scope;
    rounds.device->fault_ordinal = round;
    CHECK_THROWS(internal, "expected 1..8 rows and no more tokens, got 0 and 0", rounds.decode_in_rounds());
  }
}
#endif

TEST_CASE("active experts add up over rounds") {
  Runner rounds({.max_tokens = 3});
  rounds.decode_in_rounds();
  CHECK_EQ(rounds.state->active_experts, 2 * uint64_t{model().config.experts_per_token});  // one MoE layer
}

TEST_CASE("a signal lost in a round is a timeout with a report; the rounds before it count") {
  for (const auto& [kind, needle] : {std::pair{TaskKind::o_proj, "waits for counter 'layer 0 o_proj'"},
                                     std::pair{TaskKind::accept, "the end of the round"}}) {
    Runner rounds({}, 0, without_signal(kind), kHangTimeoutMs);
    CHECK_THROWS(timeout, needle, rounds.decode_in_rounds());
    CHECK_EQ(rounds.tokens_out.size(), kind == TaskKind::accept ? 1u : 0u);
    CHECK_THROWS(timeout, "stopped for good", rounds.decode_in_rounds());
  }
  Runner next({.max_tokens = 3});
  CHECK_EQ(next.decode_in_rounds().size(), 2u);
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("a launch that does not come back, or that the device loses, stops the executor") {
  Runner stuck({});
  stuck.device->is_stuck = true;
  CHECK_THROWS(timeout, "the GPU did not end a step in 60 s", stuck.decode_in_rounds());
  stuck.device->is_stuck = false;
  CHECK_THROWS(timeout, "stopped for good: the GPU did not", stuck.decode_in_rounds());
  Runner lost({});
  lost.device->loss = "an illegal address";
  CHECK_THROWS(device_lost, "an illegal address", lost.decode_in_rounds());
  CHECK_THROWS(device_lost, "stopped for good: an illegal address", lost.decode_in_rounds());
}
#endif

CHECK_MAIN()
