// Drafts that a GPU looks up in the text, its own source under the emulation: those of NgramLookup, token for token,
// whatever the text and wherever its chunks begin; and how many of them the host tells it to verify.
#define MIMO_RT_HOST_EMULATION
#include "cuda/device/tasks/look_up.cuh"
#include "cuda/round_mail.h"
#include "emulated_step_device.h"
#include "engine/ngram_lookup.h"
#include "sampling_fixture.h"

#include <algorithm>
#include <random>

using namespace mimo_rt;
using namespace fixture;

namespace {

using Tokens = std::vector<int32_t>;

constexpr int32_t kGarbage = 0x77777777;  ///< behind the text

void look_up_kernel(cuda::RoundTables* round) {
  cuda::look_up_drafts(*reinterpret_cast<cuda::DrawShared*>(ptx::dynamic_shared_memory()), *round);
}

struct Found {
  uint32_t match;
  Tokens drafts;
  bool operator==(const Found&) const = default;
};

Found on_device(const Tokens& text, uint32_t num_drafts, uint32_t seed) {
  const size_t num_groups = (text.size() + cuda::kTextAlignment - 1) / cuda::kTextAlignment;
  KernelVector<int32_t> memory(num_groups * cuda::kTextAlignment, kGarbage);
  std::copy(text.begin(), text.end(), memory.begin());
  int32_t block[cuda::kMaxBlockTokens];
  std::fill_n(block, cuda::kMaxBlockTokens, -7);
  cuda::RoundTables round;
  round.text = memory.data();
  round.token_position = static_cast<uint32_t>(text.size());
  round.block = block;
  round.block_size = 1 + num_drafts;
  run_emulated(look_up_kernel, &round, options_of({.num_blocks = 1, .seed = seed}, cuda::kComputeWarps * 32,
                                                  sizeof(cuda::DrawShared)));
  CHECK_EQ(block[0], -7);
  for (uint32_t i = num_drafts; i + 1 < cuda::kMaxBlockTokens; ++i) CHECK_EQ(block[1 + i], -7);
  return {round.match, Tokens(block + 1, block + 1 + num_drafts)};
}

Found on_host(const Tokens& text, uint32_t num_drafts) {
  NgramLookup lookup(static_cast<uint32_t>(*std::max_element(text.begin(), text.end())) + 1);
  lookup.append(text);
  Found found{0, Tokens(num_drafts, -7)};
  found.match = lookup.propose(found.drafts);
  return found;
}

Tokens random_text(std::mt19937& random, uint32_t length, uint32_t vocab_size) {
  Tokens text(length);
  for (int32_t& id : text) id = static_cast<int32_t>(random() % vocab_size);
  return text;
}

/// The match that both find.
uint32_t check_equal(const Tokens& text, uint32_t num_drafts = 7, uint32_t seed = 0) {
  const Found expected = on_host(text, num_drafts), found = on_device(text, num_drafts, seed);
  CHECK(found == expected);
  return expected.match;
}

void append(Tokens& text, const Tokens& more) { text.insert(text.end(), more.begin(), more.end()); }

}  // namespace

TEST_CASE("random texts: the drafts of the host, also where a match reaches the end, and where there is none") {
  std::mt19937 random(3);
  uint32_t num_matches[cuda::kMaxBlockTokens * 4] = {};
  for (uint32_t i = 0; i < 240; ++i) {
    const uint32_t vocab_size = (const uint32_t[]){1, 2, 3, 7, 50, 400}[i % 6];
    ++num_matches[check_equal(random_text(random, 1 + random() % 130, vocab_size), random() % 8, i)];
  }
  CHECK(num_matches[0] > 20 && num_matches[1] > 20 && num_matches[kMaxLookupMatch] > 20);
  for (uint32_t match = 2; match < 7; ++match) CHECK(num_matches[match] > 5);
}

TEST_CASE("texts of several chunks, the match in any of them and across their borders") {
  std::mt19937 random(5);
  const uint32_t chunk = cuda::kChunkIds;
  for (const uint32_t length : {chunk - 1, chunk, chunk + 1, chunk + 16, 2 * chunk, 2 * chunk + 17, 3 * chunk + 5}) {
    Tokens text = random_text(random, length, 100'000);
    for (int32_t& id : text) id += 100;
    for (const uint32_t distance : {1u, 15u, 16u, 17u, 31u, chunk - 17, chunk - 16, chunk - 1, chunk, chunk + 7, 2 * chunk + 3}) {
      if (distance + 20 > length) continue;
      for (const uint32_t match : {1u, 5u, 15u, 16u, 19u}) {
        Tokens whole = text;  // the end stands before, so many tokens back
        for (uint32_t i = 0; i < match; ++i) whole[length - 1 - i] = whole[length - 1 - i - distance];
        check_equal(whole);
      }
    }
  }
}

TEST_CASE("of equal matches the latest, of all the longest; the first tokens of the text are no longer than they are") {
  const Tokens phrase = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18};
  Tokens text = {8, 9, 10, 77, 30};
  const auto ends_with = [&](uint32_t num_tokens) {
    Tokens whole = text;
    append(whole, {40});
    append(whole, Tokens(phrase.begin() + 10 - num_tokens, phrase.begin() + 10));
    return check_equal(whole);
  };
  CHECK_EQ(ends_with(5), 3u);
  append(text, {8, 9, 10, 78, 31});
  CHECK_EQ(ends_with(5), 3u);
  append(text, {6, 7, 8, 9, 10, 79});
  append(text, {9, 10, 80});
  CHECK_EQ(ends_with(5), 5u);
  CHECK_EQ(ends_with(2), 2u);
  text = phrase;
  append(text, Tokens(cuda::kChunkIds, 50));
  append(text, phrase);
  CHECK_EQ(check_equal(text), kMaxLookupMatch);
  append(text, phrase);  // a long match nearer to the end ends the search
  append(text, phrase);
  CHECK_EQ(check_equal(text), kMaxLookupMatch);
}

TEST_CASE("of a token that is everywhere as many occurrences are looked at as on the host, the latest ones") {
  std::mt19937 random(7);
  uint32_t num_far = 0, num_near = 0;
  // 0 stands behind every `gap` others; the only long match lies before `count` of it.
  for (const uint32_t gap : {1u, 2u, 15u, 16u, 40u})
    for (const uint32_t count : {0u, 1u, 500u, 508u, 509u, 510u, 511u, 512u, 513u, 600u}) {
      Tokens text = {5, 6, 0, 9};
      for (uint32_t i = 0; i < count; ++i) {
        append(text, random_text(random, gap, 3));
        for (uint32_t j = 0; j < gap; ++j) text[text.size() - 1 - j] += 20;
        text.push_back(0);
      }
      append(text, {5, 6, 0});
      const uint32_t match = check_equal(text, 3);
      num_near += match == 3;
      num_far += match == 1;
    }
  CHECK(num_near >= 25 && num_far >= 10);
}

TEST_CASE("a text that is one token late has other drafts") {
  std::mt19937 random(9);
  uint32_t num_other = 0;
  for (uint32_t i = 0; i < 20; ++i) {
    const Tokens text = random_text(random, 60, 4);
    num_other += on_device(Tokens(text.begin(), text.end() - 1), 7, i) != on_host(text, 7);
  }
  CHECK(num_other >= 15);
}

TEST_CASE("an order decides about its rounds, whatever their number, and has a width for every match") {
  for (const uint32_t last : {5u, 0x3fffu, 0x4000u, 0x7fffu, 0x8000u, ~0u, 0u})
    for (uint32_t i = 0; i <= cuda::kMaxLaunchRounds; ++i) {
      CHECK(cuda::RoundOrder::until(last).decides(last - i));
      CHECK(!cuda::RoundOrder::until(last).decides(last + 1 + i));
      CHECK(cuda::RoundOrder::stop().decides(last + i));
    }
  cuda::RoundOrder order = cuda::RoundOrder::until(~0u);
  for (uint32_t match = 1; match <= kMaxLookupMatch; ++match) order.set_max_drafts(match, match * 3 % 8);
  for (uint32_t match = 1; match <= kMaxLookupMatch; ++match) CHECK_EQ(order.max_drafts(match), match * 3 % 8);
  CHECK_EQ(order.max_drafts(0), 0u);
  CHECK(!order.is_stop() && order.decides(~0u) && !order.decides(0));
}

TEST_CASE("adaptive widths of a device's rounds are those that the host would choose for their match") {
  const SamplingParams greedy{.temperature = 0.0f};
  NgramLookup lookup(10);
  DraftWidth width({}, kNgramBlockSize, DraftSource::ngram_lookup);
  RoundRequest request;
  request.params = &greedy;
  request.max_tokens = request.max_context = 1000;
  request.lookup = &lookup;
  const RoundState state(request, width, 10, kNgramBlockSize);
  cuda::RoundMail mail(std::make_shared<EmulatedStepDevice>(), 0);
  const auto told = [&](uint32_t match) {
    mail.tell(state);
    return mail.mailbox()->order.max_drafts(match);
  };
  const auto scores_of = [](uint32_t match) {
    std::array<float, kNgramBlockSize - 1> scores;
    for (uint32_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(match + i);
    return scores;
  };
  CHECK_EQ(told(16), 0u);  // nothing is known of plain rounds yet
  width.begin(1000, {.credit = DraftBudget::kMaxCredit});
  for (uint32_t i = 0; i < 4; ++i) width.observe({.ns = 1'000'000});
  for (uint32_t i = 0; i < 6; ++i) {  // long matches are right, short ones are not
    width.observe({.num_drafts = 7, .num_accepted = 7, .ns = 1'500'000, .scores = scores_of(16)});
    width.observe({.num_drafts = 1, .ns = 1'100'000, .scores = std::array<float, 1>{1.0f}});
  }
  CHECK_EQ(told(16), 7u);
  CHECK(told(1) < told(3) && told(3) < 7);
  for (uint32_t match = 1; match <= kMaxLookupMatch; ++match) CHECK_EQ(told(match), width.choose_among(scores_of(match)));
}

CHECK_MAIN()
