// Token bytes against the published rule of GPT-2's table, and hostile tokenizer files.
#include "check.h"
#include "engine/vocabulary.h"
#include "safetensors_writer.h"

using namespace mimo_rt;

namespace {

std::string utf8(uint32_t code) {
  if (code < 0x80) return std::string(1, char(code));
  return {char(0xc0 | code >> 6), char(0x80 | (code & 0x3f))};
}

/// The character that stands for a byte, written as in the original: three printable ranges, then
/// the rest counted from 256.
std::string character_of(int byte) {
  uint32_t num_others = 0;
  for (int b = 0; b < 256; ++b) {
    const bool same = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || (b >= 0xae);
    if (b == byte) return utf8(same ? uint32_t(b) : 256 + num_others);
    num_others += !same;
  }
  return "";
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

std::string tokenizer(const std::string& vocab, const std::string& added = "[]",
                      const std::string& decoder = R"({"type":"ByteLevel"})") {
  return R"({"version":"1.0","added_tokens":)" + added + R"(,"decoder":)" + decoder +
         R"(,"model":{"type":"BPE","vocab":)" + vocab + R"(,"merges":[["a","b"],"c d"]}})";
}

Vocabulary load(const std::string& json) { return Vocabulary::from_json(json, "tokenizer.json"); }

}  // namespace

TEST_CASE("every byte has its character") {
  std::string vocab = "{";
  for (int b = 0; b < 256; ++b)
    vocab += (b ? "," : "") + quoted(character_of(b)) + ":" + std::to_string(255 - b);
  const Vocabulary vocabulary = load(tokenizer(vocab + "}"));
  CHECK_EQ(vocabulary.size(), 256u);
  for (int b = 0; b < 256; ++b)
    CHECK_EQ(vocabulary.bytes(255 - b), std::string(1, char(b)));
  CHECK(vocabulary.bytes(0) != std::string(1, 'x'));  // control
}

TEST_CASE("tokens, specials, gaps and unknown ids") {
  const Vocabulary vocabulary = load(tokenizer(
      R"({"Ġhello":3,"âĤ¬":1,"<|end|>":7,"ĠÐ¼":2,"漢Ġ":4,"merges":6})",
      R"([{"id":7,"content":"<|end|>","special":true},{"id":9,"content":"<tool>","special":false},
          {"id":10,"content":"two words"}])"));
  CHECK_EQ(vocabulary.size(), 11u);
  CHECK_EQ(vocabulary.bytes(3), " hello");
  CHECK_EQ(vocabulary.bytes(1), "€");
  CHECK_EQ(vocabulary.bytes(2), " м");
  CHECK_EQ(vocabulary.bytes(4), "漢Ġ");  // 漢 is no byte: the token stands for itself
  CHECK_EQ(vocabulary.bytes(6), "merges");  // a token, not the list of merges
  CHECK_EQ(vocabulary.bytes(7), "");  // special
  CHECK_EQ(vocabulary.bytes(9), "<tool>");
  CHECK_EQ(vocabulary.bytes(10), "two words");
  for (const int32_t id : {0, 5, 8, 11, 1 << 30, -1}) CHECK_EQ(vocabulary.bytes(id), "");
}

TEST_CASE("decoders that are not byte-level are named") {
  const auto with_decoder = [](const std::string& decoder) {
    return load(tokenizer(R"({"a":0})", "[]", decoder));
  };
  CHECK_THROWS(unsupported_shape, "Metaspace", with_decoder(R"({"type":"Metaspace"})"));
  CHECK_THROWS(unsupported_shape, "none", with_decoder("null"));
  CHECK_THROWS(unsupported_shape, "none", with_decoder("[1]"));
  CHECK_THROWS(unsupported_shape, "ByteFallback",
               with_decoder(R"({"type":"Sequence","decoders":[{"type":"ByteFallback"}]})"));
  CHECK_THROWS(unsupported_shape, "empty", with_decoder(R"({"type":"Sequence","decoders":[]})"));
  CHECK_THROWS(unsupported_shape, "empty", with_decoder(R"({"type":"Sequence","decoders":3})"));
  const auto sequence = R"({"type":"Sequence","decoders":[{"type":"ByteLevel"},{"type":"Fuse"}]})";
  const Vocabulary with_sequence = with_decoder(sequence);
  CHECK_EQ(with_sequence.bytes(0), "a");
  CHECK_THROWS(unsupported_shape, "'Unigram'",
               load(R"({"model":{"type":"Unigram","vocab":[["a",0]]}})"));
}

TEST_CASE("hostile files get an error that names the place") {
  CHECK_THROWS(bad_format, "JSON", load(""));
  CHECK_THROWS(bad_format, "JSON", load("{\"model\":"));
  CHECK_THROWS(bad_format, "JSON", load("{\"model\":{\"vocab\":{\"\xff\":1}}}"));
  CHECK_THROWS(bad_format, "object", load("[]"));
  CHECK_THROWS(bad_format, "model: expected", load("{}"));
  CHECK_THROWS(bad_format, "nesting", load(std::string(100'000, '[')));
  CHECK_THROWS(bad_format, "nesting",
               load(R"({"x":)" + std::string(40, '[') + std::string(40, ']') + "}"));
  CHECK_THROWS(bad_format, "model.vocab", load(tokenizer("[]")));
  CHECK_THROWS(bad_format, "model.vocab", load(tokenizer("{}")));
  for (const std::string id : {"-1", "4194304", "1e3", "\"7\"", "null", "[1]", "{}", "99999999999",
                               "1.5", "true", "18446744073709551616"})
    CHECK_THROWS(bad_format, "id of 'a'", load(tokenizer("{\"a\":" + id + "}")));
  CHECK_EQ(load(tokenizer("{\"a\":4194303}")).size(), 4194304u);
  CHECK_THROWS(bad_format, "expected one token", load(tokenizer(R"({"a":1,"b":1})")));
  CHECK_THROWS(bad_format, "expected one token",
               load(tokenizer(R"({"a":1})", R"([{"id":1,"content":"b"}])")));
  CHECK_THROWS(bad_format, "added_tokens: expected a list", load(tokenizer(R"({"a":1})", "{}")));
  CHECK_THROWS(bad_format, "content", load(tokenizer(R"({"a":1})", "[3]")));
  CHECK_THROWS(bad_format, "special",
               load(tokenizer(R"({"a":1})", R"([{"id":1,"content":"a","special":1}])")));
}

TEST_CASE("truncated and mutated files never crash") {
  const std::string good = tokenizer(R"({"Ġhello":3,"b":1})", R"([{"id":5,"content":"x"}])");
  uint32_t state = 1;
  int num_loaded = 0;
  for (size_t i = 0; i < 4000; ++i) {
    std::string bad = good;
    if (i < good.size()) bad.resize(i);
    else for (int edit = 0; edit < 1 + int(i % 2); ++edit) {
      state = state * 1664525u + 1013904223u;
      bad[(state >> 8) % bad.size()] = "\"{}[]:,0129aÄ\\\n"[(state >> 3) % 15];
    }
    try {
      const Vocabulary vocabulary = load(bad);
      for (int32_t id = 0; id < 20; ++id) CHECK(vocabulary.bytes(id).size() < 1000);
      ++num_loaded;
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::bad_format || error.code() == ErrorCode::unsupported_shape);
    }
  }
  CHECK(num_loaded > 100);
}

TEST_CASE("files: absent, a directory, and a good one") {
  const writer::TempDir directory;
  CHECK_THROWS(io, "absent.json", Vocabulary::from_file(directory.path() / "absent.json"));
  directory.write("sub/tokenizer.json", tokenizer(R"({"a":1})"));
  CHECK_THROWS(bad_format, "sub", Vocabulary::from_file(directory.path() / "sub"));
  const Vocabulary vocabulary = Vocabulary::from_file(directory.path() / "sub" / "tokenizer.json");
  CHECK_EQ(vocabulary.bytes(1), "a");
}

CHECK_MAIN()
