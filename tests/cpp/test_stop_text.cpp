// Text output against whole-text references: a second, simple UTF-8 decoder and a brute-force
// search for stop strings. However the bytes are cut into tokens, the result must be the same.
#include "check.h"
#include "core/text.h"
#include "engine/stop_text.h"

#include <random>

using namespace mimo_rt;
using Strings = std::vector<std::string>;

namespace {

/// The reference of maximal-subpart replacement: longest valid prefix of a character, by table.
std::string decode_reference(const std::string& bytes) {
  std::string out;
  const auto at = [&](size_t i) { return i < bytes.size() ? uint8_t(bytes[i]) : 0u; };
  const auto in = [](unsigned b, unsigned low, unsigned high) { return b >= low && b <= high; };
  for (size_t i = 0; i < bytes.size();) {
    const unsigned b = at(i), next = at(i + 1);
    size_t length = in(b, 0, 0x7f) ? 1 : in(b, 0xc2, 0xdf) ? 2 : in(b, 0xe0, 0xef) ? 3
                    : in(b, 0xf0, 0xf4) ? 4 : 0;
    unsigned low = 0x80, high = 0xbf;  // Unicode standard, table 3-7
    if (b == 0xe0) low = 0xa0;
    if (b == 0xed) high = 0x9f;
    if (b == 0xf0) low = 0x90;
    if (b == 0xf4) high = 0x8f;
    size_t valid = length > 0;
    if (length > 1 && in(next, low, high)) valid = 2;
    while (valid > 1 && valid < length && in(at(i + valid), 0x80, 0xbf)) ++valid;
    const bool whole = length > 0 && valid == length;
    out += whole ? bytes.substr(i, length) : "\xef\xbf\xbd";
    i += std::max<size_t>(valid, 1);
  }
  return out;
}

struct Outcome {
  std::string text;
  int stop_idx;
  bool operator==(const Outcome&) const = default;
};

/// Every end, every stop string: the earliest end, then the longest.
Outcome search_reference(const std::string& bytes, const Strings& stops, bool include) {
  const std::string text = decode_reference(bytes);
  for (size_t end = 1; end <= text.size(); ++end) {
    int best = -1;
    for (size_t i = 0; i < stops.size(); ++i) {
      const size_t n = stops[i].size();
      if (n <= end && text.compare(end - n, n, stops[i]) == 0 &&
          (best < 0 || n > stops[size_t(best)].size()))
        best = int(i);
    }
    if (best >= 0) return {text.substr(0, end - (include ? 0 : stops[size_t(best)].size())), best};
  }
  return {text, -1};
}

/// Feeds `bytes` in the given pieces; checks on the way that what is released only grows and is
/// always a prefix of the final text in whole characters.
Outcome feed(const Strings& pieces, const Strings& stops, bool include) {
  StopText text(stops, include);
  std::string released;
  for (const std::string& piece : pieces) {
    const bool go_on = text.push(piece);
    released += text.take_released();
    CHECK(is_valid_utf8(released));
    if (!go_on) break;
  }
  text.finish();
  released += text.take_released();
  CHECK_EQ(released, text.text());
  return {released, text.stop_idx()};
}

Strings cut(const std::string& bytes, std::mt19937& random, size_t max_piece) {
  Strings pieces;
  for (size_t i = 0; i < bytes.size();) {
    const size_t n = random() % (max_piece + 1);  // empty pieces too: special tokens
    pieces.push_back(bytes.substr(i, n));
    i += n;
  }
  return pieces;
}

}  // namespace

TEST_CASE("utf-8: replacement as Python's errors='replace'") {
  // Right-hand sides from bytes.decode("utf-8", "replace") of CPython 3.11.
  const std::pair<std::string, std::string> cases[] = {
      {"a\xc3\xa9z", "aéz"},
      {"\xf0\x9f\x98\x80", "😀"},
      {"\xf0\x9f\x98", "\ufffd"},
      {"\xf0\x9f\x98z", "\ufffdz"},
      {"\xe2\x82", "\ufffd"},
      {"\xff\xfe", "\ufffd\ufffd"},
      {"\xc0\xaf", "\ufffd\ufffd"},
      {"\xe0\x80\xaf", "\ufffd\ufffd\ufffd"},
      {"\xed\xa0\x80", "\ufffd\ufffd\ufffd"},
      {"\xf4\x90\x80\x80", "\ufffd\ufffd\ufffd\ufffd"},
      {"\xf0\x80\x80\x80", "\ufffd\ufffd\ufffd\ufffd"},
      {"\xe2\x82\xe2\x82\xac", "\ufffd€"},
      {"\x80", "\ufffd"},
      {"\xc3\xc3\xa9", "\ufffdé"},
  };
  for (const auto& [bytes, want] : cases) {
    CHECK_EQ(feed({bytes}, {}, false).text, want);
    CHECK_EQ(decode_reference(bytes), want);
    Strings single;
    for (const char c : bytes) single.emplace_back(1, c);
    CHECK_EQ(feed(single, {}, false).text, want);
  }
  CHECK(is_valid_utf8("aé😀") && !is_valid_utf8("\xc3") && !is_valid_utf8("\xed\xa0\x80"));
}

TEST_CASE("utf-8: random bytes in random pieces equal the reference") {
  std::mt19937 random(11);
  const std::string alphabet = "a\x80\xbf\xc3\xe0\xa0\xed\x9f\xe2\x82\xf0\x90\xf4\x8f\xff\xc1";
  for (int round = 0; round < 3000; ++round) {
    std::string bytes;
    for (size_t n = random() % 24; n > 0; --n) bytes += alphabet[random() % alphabet.size()];
    CHECK_EQ(feed(cut(bytes, random, 3), {}, false).text, decode_reference(bytes));
  }
}

TEST_CASE("an incomplete character is held back until it is complete") {
  StopText text({}, false);
  text.push("\xf0\x9f");
  CHECK_EQ(text.take_released(), "");
  text.push("");  // a special token in between
  text.push("\x98");
  CHECK_EQ(text.take_released(), "");
  text.push("\x80!");
  CHECK_EQ(text.take_released(), "😀!");
}

TEST_CASE("stop strings: held back while one may be forming, across tokens") {
  StopText text({"<end>", "END"}, false);
  CHECK(text.push("say <e"));
  CHECK_EQ(text.take_released(), "say ");
  CHECK(text.push("nE"));  // "<en" was no stop string, "E" may be one
  CHECK_EQ(text.take_released(), "<en");
  CHECK(text.push("N"));
  CHECK_EQ(text.take_released(), "");
  CHECK(!text.push("Dtail"));
  CHECK_EQ(text.stop_idx(), 1);
  CHECK_EQ(text.take_released(), "");
  CHECK_EQ(text.text(), "say <en");
  text.finish();
  CHECK_EQ(text.text(), "say <en");
}

TEST_CASE("stop strings: earliest end wins, then the longest; included when asked for") {
  CHECK((feed({"xabcd"}, {"abcd", "bc"}, false) == Outcome{"xa", 1}));
  CHECK((feed({"xabc"}, {"bc", "abc", "c"}, false) == Outcome{"x", 1}));
  CHECK((feed({"xabc"}, {"bc", "abc", "c"}, true) == Outcome{"xabc", 1}));
  CHECK((feed({"aab", "aabaaab"}, {"aabaaa"}, false) == Outcome{"aab", 0}));  // overlapping start
  CHECK((feed({"aabaaabaaac"}, {"aabaaac"}, false) == Outcome{"aaba", 0}));  // a border of a border
  CHECK((feed({"wait"}, {"waiting"}, false) == Outcome{"wait", -1}));  // released at the end
  CHECK((feed({"na\xc3", "\xafve"}, {"ï"}, false) == Outcome{"na", 0}));
}

TEST_CASE("stop strings: random texts, stops and cuts equal the brute force") {
  std::mt19937 random(12);
  const auto word = [&](size_t longest) {
    std::string out;
    for (size_t n = 1 + random() % longest; n > 0; --n) out += "abé"[random() % 2];
    return out;
  };
  int num_found = 0, num_wrong = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string bytes;
    Strings stops;
    for (size_t n = random() % 12; n > 0; --n) bytes += random() % 4 ? word(4) : "é";
    for (size_t n = random() % 4; n > 0; --n) stops.push_back(random() % 3 ? word(6) : "bé");
    const bool include = random() % 2;
    const Outcome want = search_reference(bytes, stops, include);
    const Outcome got = feed(cut(bytes, random, 4), stops, include);
    CHECK(got == want);
    num_found += want.stop_idx >= 0;
    // Control: a search that starts anew with every token must differ somewhere.
    Outcome naive{"", -1};
    for (const std::string& piece : cut(bytes, random, 4))
      if (naive.stop_idx < 0) {
        const Outcome part = search_reference(piece, stops, include);
        naive = {naive.text + part.text, part.stop_idx};
      }
    num_wrong += !(naive == want);
  }
  CHECK(num_found > 1000 && num_wrong > 1000);
}

TEST_CASE("may_stop = false: the bytes are shown at once and match nothing") {
  StopText text({"ab"}, false);
  CHECK(text.push("xaab", false));
  CHECK_EQ(text.take_released(), "xaab");
  CHECK(text.push("a", false));
  CHECK(text.push("b"));  // the "a" before does not count
  CHECK_EQ(text.take_released(), "ab");
  CHECK(!text.push("ab"));
  CHECK_EQ(text.text(), "xaabab");
  StopText begun({"ab"}, false);
  CHECK(begun.push("a"));
  CHECK(begun.push("x", false));  // nor does it go on with a stop string that has begun
  CHECK(begun.push("b"));
  CHECK_EQ(begun.text(), "axb");
}

CHECK_MAIN()
