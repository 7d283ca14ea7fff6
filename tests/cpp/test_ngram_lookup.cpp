// The lookup against one that compares every place of the text.
#include "check.h"
#include "engine/ngram_lookup.h"

#include <algorithm>
#include <vector>

using namespace mimo_rt;

namespace {

using Tokens = std::vector<int32_t>;

struct Found {
  uint32_t match = 0;
  Tokens drafts;
};

/// The longest match of all, of those the latest; what follows it, and where the text ends, what was found before.
Found search(const Tokens& text, uint32_t num_drafts) {
  Found best;
  for (size_t end = text.size() - 1; end >= 1; --end) {  // tokens before the candidate's continuation
    uint32_t match = 0;
    while (match < kMaxLookupMatch && match < end && text[end - 1 - match] == text[text.size() - 1 - match]) ++match;
    if (match <= best.match) continue;
    best.match = match;
    Tokens whole = text;
    for (uint32_t i = 0; i < num_drafts; ++i) whole.push_back(whole[end + i]);
    best.drafts.assign(whole.end() - num_drafts, whole.end());
  }
  return best;
}

Tokens random_text(uint32_t length, uint32_t vocab_size, uint64_t seed) {
  Tokens text;
  uint64_t state = seed;
  for (uint32_t i = 0; i < length; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    text.push_back(int32_t((state >> 33) % vocab_size));
  }
  return text;
}

Found look_up(const NgramLookup& lookup, uint32_t num_drafts) {
  Found found{0, Tokens(num_drafts, -7)};
  found.match = lookup.propose(found.drafts);
  return found;
}

}  // namespace

TEST_CASE("the lookup finds what a search of the whole text finds") {
  uint32_t num_found = 0, num_long = 0;
  for (const uint32_t vocab_size : {1u, 2u, 3u, 10u, 200u})
    for (uint64_t seed = 0; seed < 20; ++seed) {
      NgramLookup lookup(vocab_size);
      const Tokens text = random_text(120, vocab_size, seed);
      for (size_t size = 1; size <= text.size(); ++size) {
        lookup.append({&text[size - 1], 1});
        const uint32_t num_drafts = uint32_t(size % 16);
        const Found expected = search(Tokens(text.begin(), text.begin() + long(size)), num_drafts);
        const Found found = look_up(lookup, num_drafts);
        CHECK_EQ(found.match, expected.match);
        CHECK(found.drafts == (expected.match ? expected.drafts : Tokens(num_drafts, -7)));
        num_found += found.match > 0;
        num_long += found.match > 4;
      }
    }
  CHECK(num_found > 5000);
  CHECK(num_long > 1000);
}

TEST_CASE("a match that reaches the end of the text repeats itself") {
  NgramLookup lookup(10);
  lookup.append(Tokens{7, 1, 2, 3, 1, 2, 3});
  const Found found = look_up(lookup, 7);
  CHECK_EQ(found.match, 3u);
  CHECK(found.drafts == Tokens({1, 2, 3, 1, 2, 3, 1}));
}

TEST_CASE("no text, one token and a new token have no drafts") {
  NgramLookup lookup(10);
  CHECK_EQ(look_up(lookup, 3).match, 0u);
  lookup.append(Tokens{4});
  CHECK_EQ(look_up(lookup, 3).match, 0u);
  lookup.append(Tokens{4});
  CHECK_EQ(look_up(lookup, 3).match, 1u);
  lookup.append(Tokens{5});
  CHECK_EQ(look_up(lookup, 3).match, 0u);
}

TEST_CASE("a cleared lookup knows nothing") {
  NgramLookup lookup(10);
  lookup.append(Tokens{1, 2, 3, 1});
  CHECK_EQ(look_up(lookup, 1).match, 1u);
  lookup.clear();
  CHECK_EQ(lookup.size(), 0u);
  lookup.append(Tokens{1});
  CHECK_EQ(look_up(lookup, 1).match, 0u);
}

TEST_CASE("of a token that is everywhere the latest occurrences are looked at") {
  // 0 stands between all others; the only long match lies further back than anyone looks.
  Tokens text = {5, 6, 0, 9};
  const auto fill = [&](uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) text.insert(text.end(), {1, 0});
  };
  const auto match_after = [&](uint32_t count) {
    Tokens whole = text;
    fill(count);
    std::swap(whole, text);
    whole.insert(whole.end(), {5, 6, 0});
    NgramLookup lookup(10);
    lookup.append(whole);
    return look_up(lookup, 1);
  };
  CHECK_EQ(match_after(500).match, 3u);
  CHECK(match_after(500).drafts == Tokens{9});
  CHECK_EQ(match_after(600).match, 1u);
}

CHECK_MAIN()
