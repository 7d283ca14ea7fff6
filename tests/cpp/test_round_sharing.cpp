// Shared steps or rounds with drafts: whatever brings more tokens, found out first, and again after a while. And sessions
// that do both, in any order and disturbed in every way.
#include "drafted_session.h"
#include "engine/round_sharing.h"
#include "engine/session_impl.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

using namespace fake_engine;

TEST_CASE("rounds alone are measured first, then a shared step, then what brings more tokens") {
  RoundSharing sharing;
  CHECK(!sharing.shares(2, 0.0, 0.0));
  CHECK(!sharing.shares(2, 0.0, 5.0));
  CHECK(sharing.shares(2, 1.0, 0.0));
  // Alone 3 tokens in 2 ns; shared one of each session in 1.6 ns.
  CHECK(!sharing.shares(2, 1.5, 1.6));
  CHECK(sharing.shares(3, 1.5, 1.6));
  CHECK(!sharing.shares(3, 1.5, 2.1));
}

TEST_CASE("whatever brings more, the other is looked at now and then: times of long ago may have been those of another load") {
  RoundSharing sharing;
  for (const bool pays : {true, false}) {
    uint32_t num_others = 0, num_in_a_row = 0, longest = 0;
    for (uint32_t round = 0; round < 10 * (pays ? 260u : 257u); ++round) {
      const bool shares = sharing.shares(8, pays ? 1.0 : 5.0, 2.0);
      num_others += shares != pays;
      num_in_a_row = shares == pays ? num_in_a_row + 1 : 0;
      longest = std::max(longest, num_in_a_row);
    }
    CHECK_EQ(num_others, pays ? 40u : 10u);
    CHECK_EQ(longest, 256u);
  }
  CHECK(sharing.shares(8, 1.0, 2.0));
}

TEST_CASE("rounds that are never shared do not make others share theirs, but count for prompts beside them") {
  for (const auto mode : {DraftOptions::Mode::off, DraftOptions::Mode::fixed, DraftOptions::Mode::adaptive}) {
    const Fixture f(16, 4, Drafts::model);
    GenerateOptions options = greedy(12);
    options.draft.mode = mode;
    const Engine::Impl& impl = f.engine->impl();
    uint32_t most_sharing = 0, most_decoding = 0;
    f.executor->on_step = [&] {
      most_sharing = std::max(most_sharing, impl.num_sharing.load());
      most_decoding = std::max(most_decoding, impl.num_decoding.load());
    };
    const Tokens tokens = Session(f.engine).generate(iota_tokens(9), options, [&](const TokenEvent&) {
      CHECK_EQ(impl.num_sharing.load() + impl.num_decoding.load(), 0u);
      return true;
    }).token_ids;
    CHECK(tokens == reference(iota_tokens(9), options));
    CHECK_EQ(most_sharing, mode == DraftOptions::Mode::fixed ? 0u : 1u);
    CHECK_EQ(most_decoding, 1u);
  }
}

TEST_CASE("beside others, adaptive rounds draft while that brings more than shared steps, fixed ones always") {
  const auto generate = [](uint32_t num_others, DraftOptions::Mode mode) {
    const Fixture f(16, 4, Drafts::model);
    f.executor->joins = true;
    f.executor->on_step = [] { std::this_thread::sleep_for(std::chrono::milliseconds(1)); };  // steps and rounds alike
    f.engine->impl().num_sharing = num_others;
    GenerateOptions options = greedy(200);
    options.draft.mode = mode;
    const auto on_token = [](const TokenEvent&) { return true; };  // round by round
    const GenerateResult result = Session(f.engine).generate(iota_tokens(9), options, on_token);
    CHECK(result.token_ids == reference(iota_tokens(9), options));
    return stats_of(result);
  };
  const auto drafts = [&] {
    const DraftStats few = generate(1, DraftOptions::Mode::adaptive);
    return few.num_drafted_rounds > 20 && few.num_rounds < 150;
  };
  const auto shares = [&] {
    const DraftStats many = generate(60, DraftOptions::Mode::adaptive);
    return many.num_drafted_rounds < 15 && many.num_rounds > 150;
  };
  // A step that was interrupted, above all the first, may mislead.
  CHECK(drafts() || drafts() || drafts());
  CHECK(shares() || shares() || shares());
  const DraftStats fixed = generate(60, DraftOptions::Mode::fixed);
  CHECK(fixed.num_drafted_rounds + 2 >= fixed.num_rounds);
}

TEST_CASE("steps of several tokens leave only these without the draft's context, single ones wait until many are") {
  const Fixture f(16, 4, Drafts::model);
  SessionState session(f.engine, 100, 0);
  const auto step = [&](uint32_t num_tokens) {
    StepOutput output;
    session.sequence.step(f.engine->impl(), iota_tokens(num_tokens), {}, nullptr, output);
    return session.sequence.num_pending_context();
  };
  CHECK_EQ(step(3), 3u);
  CHECK_EQ(step(5), 5u);
  CHECK_EQ(step(1), 6u);
  CHECK_EQ(step(2), 2u);
  for (uint32_t num_pending = 3; num_pending <= 16; ++num_pending) CHECK_EQ(step(1), num_pending);
  CHECK_EQ(step(1), 1u);  // as many as a round may have pending that drafts
}

namespace {

/// The user of a session: turns of a conversation, some of which end early, and some of which begin in the middle of another.
class Talker {
 public:
  Talker(const Fixture& f, uint32_t number) : f_(f), number_(number), random_(mix(number + 1)) { open(); }

  void run(uint32_t num_turns) {
    for (uint32_t turn = 0; turn < num_turns; ++turn) {
      if (below(8) == 0) open();
      else if (below(8) == 0) session_->reset();
      if (text_.size() > 200 || below(3) == 0) text_.resize(1 + below(uint32_t(std::min<size_t>(text_.size(), 60))));
      if (below(3)) text_ = text_ + iota_tokens(1 + below(30), int32_t(below(60)));
      generate();
    }
  }
  /// By any thread.
  void cancel() {
    const std::lock_guard lock(mutex_);
    session_->cancel();
  }
  /// Whether rounds accept as many drafts as those of a session that has never met another.
  bool drafts_as_alone() {
    text_.resize(std::min<size_t>(text_.size(), 200));
    const GenerateOptions drafting = fixed(greedy(40));
    const Fixture other(16, 4, Drafts::model);
    Session fresh(other.engine);
    const GenerateResult result = session_->generate(text_, drafting);
    return result.token_ids == reference(text_, drafting) &&
           stats_of(result).num_accepted_tokens == stats_of(fresh.generate(text_, drafting)).num_accepted_tokens;
  }

  uint32_t num_ended = 0, num_disturbed = 0, num_wrong = 0;

 private:
  uint32_t below(uint32_t end) { return uint32_t((random_ = mix(random_ + 1)) % end); }

  void open() {
    auto session = std::make_unique<Session>(f_.engine, SessionOptions{.sequence_id = number_});
    const std::lock_guard lock(mutex_);
    session_ = std::move(session);
  }

  GenerateOptions draw_options() {
    using enum DraftOptions::Mode;
    constexpr DraftOptions::Mode kModes[] = {off, fixed, adaptive, adaptive};
    GenerateOptions options = greedy(1 + below(below(2) ? 3 : 60));
    options.draft.mode = kModes[below(4)];
    options.sampling.seed = number_;
    if (below(3) == 0) options.sampling.temperature = 1.0f;
    if (below(4) == 0) options.sampling.repetition_penalty = 1.3f;
    return options;
  }

  void generate() {
    const GenerateOptions options = draw_options();
    const Tokens expected = reference(text_, options, number_);
    const uint32_t stop_at = below(3) ? ~0u : 1 + below(20);
    const bool throws = below(2);
    Tokens shown;
    TokenCallback on_token;
    if (below(2))
      on_token = [&](const TokenEvent& event) {
        shown.insert(shown.end(), event.token_ids.begin(), event.token_ids.end());
        if (shown.size() >= stop_at && throws) throw std::runtime_error("the reader broke");
        return shown.size() < stop_at;
      };
    try {
      const GenerateResult result = session_->generate(text_, options, on_token);
      const bool is_whole = result.finish_reason == FinishReason::length;
      ++(is_whole ? num_ended : num_disturbed);
      shown = result.token_ids;
      num_wrong += is_whole && shown.size() != expected.size();
    } catch (const std::runtime_error& error) {
      ++num_disturbed;
      num_wrong += std::string(error.what()).find(" broke") == std::string::npos;
    }
    num_wrong += shown.size() > expected.size() || !std::equal(shown.begin(), shown.end(), expected.begin());
    text_ = text_ + shown;
  }

  const Fixture& f_;
  const uint32_t number_;
  uint64_t random_;
  std::mutex mutex_;  // of the pointer
  std::unique_ptr<Session> session_;
  Tokens text_ = iota_tokens(20);
};

/// `fails`: now and then a step or a round does.
void check_talkers(bool fails) {
  const Fixture f(16, 4, Drafts::model);
  f.executor->joins = true;
  uint32_t num_calls = 0;
  f.executor->on_step = [&] {
    if (++num_calls % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));  // or they hardly meet
    if (fails && num_calls % 61 == 0) throw std::runtime_error("the step broke");
  };
  std::vector<std::unique_ptr<Talker>> talkers;
  for (uint32_t i = 0; i < 5; ++i) talkers.push_back(std::make_unique<Talker>(f, i));
  std::atomic<uint32_t> num_running = uint32_t(talkers.size());
  std::vector<std::thread> threads;
  for (const auto& talker : talkers)
    threads.emplace_back([&] {
      talker->run(60);
      --num_running;
    });
  for (uint32_t i = 0; num_running; i = (i + 1) % uint32_t(talkers.size())) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    talkers[i]->cancel();
  }
  for (std::thread& thread : threads) thread.join();
  f.executor->on_step = nullptr;
  CHECK_EQ(f.engine->impl().num_decoding.load() + f.engine->impl().num_sharing.load(), 0u);
  CHECK_EQ(f.engine->impl().steps.num_waiting(), 0u);
  CHECK(f.executor->num_joint_steps > 0 && f.executor->num_drafted_rounds > 0);
  uint32_t num_ended = 0, num_disturbed = 0;
  for (const auto& talker : talkers) {
    CHECK_EQ(talker->num_wrong, 0u);
    CHECK(talker->drafts_as_alone());
    num_ended += talker->num_ended;
    num_disturbed += talker->num_disturbed;
  }
  CHECK(num_ended > 0 && num_disturbed > 0);  // on a busy machine a cancel comes before most ends
}

}  // namespace

TEST_CASE("sessions with a draft that begin, rewind, end and cancel at any time have the tokens of each alone") {
  check_talkers(false);
}

TEST_CASE("steps and rounds that fail leave sessions with a draft as they were, whoever shared them") { check_talkers(true); }

CHECK_MAIN()
