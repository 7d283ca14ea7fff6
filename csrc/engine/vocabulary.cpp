#include "engine/vocabulary.h"

#include "checkpoint/json_scanner.h"
#include "core/checks.h"
#include "core/file.h"
#include "core/text.h"

#include <nlohmann/json.hpp>

#include <array>
#include <charconv>
#include <utility>

namespace mimo_rt {
namespace {

using Json = nlohmann::json;

constexpr const char* kWhere = "Vocabulary";
constexpr int kMaxDepth = 32;

/// A small part of the file as a document. The scanner has found it well-formed.
Json parse_part(std::string_view text, std::string_view source) {
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {  // a number beyond all types
    fail(ErrorCode::bad_format, kWhere, source, ": not valid JSON: ", printable(error.what(), 300));
  }
}

/// A member, or null when there is none.
const Json& member(const Json& object, const char* key) {
  static const Json kNull;
  const auto found = object.is_object() ? object.find(key) : object.end();
  return object.is_object() && found != object.end() ? *found : kNull;
}

std::string text_or(const Json& value, const char* otherwise) {
  return value.is_string() ? value.get<std::string>() : otherwise;
}

/// Names the first decoder that is not byte-level; empty when all is well.
std::string find_foreign_decoder(const Json& decoder) {
  const std::string type = text_or(member(decoder, "type"), "none");
  if (type == "ByteLevel") return "";
  if (type != "Sequence") return type;
  const Json& parts = member(decoder, "decoders");
  bool has_byte_level = false;
  for (const Json& part : parts.is_array() ? parts : Json::array()) {
    const std::string part_type = text_or(member(part, "type"), "none");
    if (part_type != "ByteLevel" && part_type != "Fuse") return part_type;
    has_byte_level |= part_type == "ByteLevel";
  }
  return has_byte_level ? "" : "an empty Sequence";
}

/// GPT-2's table backwards: a character of the vocabulary file -> the byte it stands for, or -1.
/// Printable Latin-1 characters stand for themselves; the other bytes, ascending, for U+0100 on.
const std::array<int16_t, 0x144>& byte_of_character() {
  static const auto kTable = [] {
    std::array<int16_t, 0x144> table;
    table.fill(-1);
    size_t next = 0x100;
    for (int16_t byte = 0; byte < 256; ++byte) {
      const bool printable_latin1 =
          (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
      table[printable_latin1 ? static_cast<size_t>(byte) : next++] = byte;
    }
    return table;
  }();
  return kTable;
}

/// Appends the bytes that `token` spells. A token with a character outside the table stands for its
/// own UTF-8 bytes, as in the `tokenizers` library.
void append_bytes(std::string_view token, std::string& out) {
  const size_t begin = out.size();
  for (size_t i = 0; i < token.size(); ++i) {
    auto code = static_cast<uint32_t>(static_cast<uint8_t>(token[i]));
    if (code >= 0xc0 && code < 0xe0 && i + 1 < token.size())  // the JSON parser checked the UTF-8
      code = (code & 0x1f) << 6 | (static_cast<uint8_t>(token[++i]) & 0x3f);
    else if (code >= 0x80)
      code = 0xffff;  // the beginning of a longer character: not in the table
    const auto& table = byte_of_character();
    const int16_t byte = code < table.size() ? table[code] : int16_t{-1};
    if (byte < 0) {
      out.resize(begin);
      out += token;
      return;
    }
    out += static_cast<char>(byte);
  }
}

}  // namespace

/// Fills a Vocabulary and checks the ids while doing so.
class VocabularyBuilder {
 public:
  explicit VocabularyBuilder(std::string_view source) : source_(source) {}

  void add_model_token(const std::string& token, std::string_view id) {
    add(token, id, false, "model.vocab");
  }

  void add_added_tokens(const Json& tokens) {
    if (tokens.is_null()) return;
    MIMO_RT_CHECK(tokens.is_array(), bad_format, kWhere, source_,
                  ": added_tokens: expected a list, got ", tokens.type_name());
    for (const Json& token : tokens) {
      const Json& content = member(token, "content");
      const Json& special = member(token, "special");
      MIMO_RT_CHECK(content.is_string(), bad_format, kWhere, source_,
                    ": added_tokens: content: expected a string, got ", content.type_name());
      MIMO_RT_CHECK(special.is_boolean() || special.is_null(), bad_format, kWhere, source_,
                    ": added_tokens: special: expected true or false, got ", special.type_name());
      add(content.get_ref<const std::string&>(), member(token, "id").dump(),
          special.is_boolean() && special.get<bool>(), "added_tokens");
    }
  }

  Vocabulary take() { return std::move(vocabulary_); }

 private:
  /// `id`: as the file has it.
  void add(const std::string& token, std::string_view id, bool special, const char* list) {
    uint32_t idx = 0;
    const auto [end, error] = std::from_chars(id.data(), id.data() + id.size(), idx);
    MIMO_RT_CHECK(error == std::errc() && end == id.data() + id.size() &&
                      idx <= uint32_t{Vocabulary::kMaxTokenId},
                  bad_format, kWhere, source_, ": ", list, ": id of ", printable(token, 60),
                  ": expected an integer in [0, ", Vocabulary::kMaxTokenId, "], got ",
                  printable(id, 40));
    if (idx >= vocabulary_.entries_.size()) vocabulary_.entries_.resize(idx + 1);
    Vocabulary::Entry& entry = vocabulary_.entries_[idx];
    std::string bytes;
    append_bytes(token, bytes);
    // An added token may repeat an entry of the model's vocabulary, but not redefine it.
    const auto old = std::string_view(vocabulary_.blob_).substr(entry.begin, entry.size);
    MIMO_RT_CHECK(!entry.known || old == bytes, bad_format, kWhere, source_, ": ", list, ": id ",
                  idx, ": expected one token, got ", printable(old, 60), " and ",
                  printable(bytes, 60));
    entry.special |= special;
    if (entry.known) return;
    entry.known = true;
    entry.begin = static_cast<uint32_t>(vocabulary_.blob_.size());
    entry.size = static_cast<uint32_t>(bytes.size());
    vocabulary_.blob_ += bytes;
  }

  std::string_view source_;
  Vocabulary vocabulary_;
};

namespace {

/// One pass over the file: the vocabulary goes to a builder as it comes, small parts become documents, and the rest,
/// merges above all, is checked and skipped.
class TokenizerReader {
 public:
  TokenizerReader(std::string_view json, std::string_view source)
      : scanner_(json, kWhere, source), source_(source), builder_(source) {}

  Vocabulary read() {
    if (!scanner_.is_next('{')) expected("", "a JSON object", scanner_.raw_value(kMaxDepth));
    for_each_member([this](const std::string& key) {
      if (key == "model" && scanner_.is_next('{')) read_model();
      else if (key == "model") expected("model: ", "an object", scanner_.raw_value(kMaxDepth));
      else if (key == "decoder") decoder_ = parse_part(scanner_.raw_value(kMaxDepth), source_);
      else if (key == "added_tokens") added_ = parse_part(scanner_.raw_value(kMaxDepth), source_);
      else scanner_.skip_value(kMaxDepth);
    });
    scanner_.expect_end('\0');
    check();
    builder_.add_added_tokens(added_);
    return builder_.take();
  }

 private:
  [[noreturn]] void expected(const char* place, const char* what, std::string_view got) const {
    fail(ErrorCode::bad_format, kWhere, source_, ": ", place, "expected ", what, ", got ",
         printable(got, 40));
  }

  template <typename Function>
  void for_each_member(const Function& function) {
    scanner_.expect('{');
    if (scanner_.accept('}')) return;
    do {
      const std::string key = scanner_.string();
      scanner_.expect(':');
      function(key);
    } while (scanner_.accept(','));
    scanner_.expect('}');
  }

  void read_model() {
    MIMO_RT_CHECK(!std::exchange(has_model_, true), bad_format, kWhere, source_,
                  ": model: expected once, got it twice");
    for_each_member([this](const std::string& key) {
      if (key == "type") type_ = parse_part(scanner_.raw_value(kMaxDepth), source_);
      else if (key != "vocab") scanner_.skip_value(kMaxDepth);
      else if (scanner_.is_next('{')) read_vocab();
      else other_vocab_ = scanner_.raw_value(kMaxDepth);
    });
  }

  void read_vocab() {
    for_each_member([this](const std::string& token) {
      builder_.add_model_token(token, scanner_.raw_value(kMaxDepth));
      has_tokens_ = true;
    });
  }

  void check() const {
    if (!has_model_) expected("model: ", "an object", "null");
    const std::string type = text_or(type_, "BPE");
    MIMO_RT_CHECK(type == "BPE", unsupported_shape, kWhere, source_,
                  ": model.type: expected BPE, got ", printable(type, 60));
    const std::string decoder = find_foreign_decoder(decoder_);
    MIMO_RT_CHECK(decoder.empty(), unsupported_shape, kWhere, source_,
                  ": decoder: expected ByteLevel, got ", printable(decoder, 60),
                  ". Decode the token ids with the tokenizer itself.");
    if (!has_tokens_) expected("model.vocab: ", "a non-empty object", other_vocab_);
  }

  JsonScanner scanner_;
  std::string_view source_;
  VocabularyBuilder builder_;
  Json decoder_, added_, type_;
  std::string_view other_vocab_ = "none";
  bool has_model_ = false, has_tokens_ = false;
};

}  // namespace

Vocabulary Vocabulary::from_json(std::string_view json, std::string_view source_name) {
  MIMO_RT_CHECK(json.size() <= kMaxFileBytes, bad_format, kWhere, source_name,
                ": expected at most ", kMaxFileBytes, " bytes, got ", json.size());
  return TokenizerReader(json, source_name).read();
}

Vocabulary Vocabulary::from_file(const std::filesystem::path& tokenizer_json) {
  const auto parent = tokenizer_json.has_parent_path() ? tokenizer_json.parent_path() : ".";
  const std::string text = read_text_file(canonical_directory(parent, kWhere),
                                          tokenizer_json.filename().string(), kMaxFileBytes,
                                          kWhere);
  return from_json(text, tokenizer_json.filename().string());
}

std::string_view Vocabulary::bytes(int32_t token_id) const {
  if (token_id < 0 || static_cast<uint32_t>(token_id) >= size()) return {};
  const Entry& entry = entries_[static_cast<size_t>(token_id)];
  if (entry.special) return {};
  return std::string_view(blob_).substr(entry.begin, entry.size);
}

}  // namespace mimo_rt
