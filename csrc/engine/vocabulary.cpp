#include "engine/vocabulary.h"

#include "core/checks.h"
#include "core/file.h"
#include "core/text.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>

namespace mimo_rt {
namespace {

using Json = nlohmann::json;

constexpr const char* kWhere = "Vocabulary";
constexpr int kMaxDepth = 32;
constexpr uint64_t kMaxKeys = 1 << 22;

/// Only these parts of the file are kept in memory.
bool is_wanted(int depth, const std::string& key) {
  if (depth == 1) return key == "model" || key == "added_tokens" || key == "decoder";
  return depth != 2 || key != "merges";  // deeper, it is a token like any other
}

Json parse_tokenizer(std::string_view text, std::string_view source) {
  MIMO_RT_CHECK(text.size() <= Vocabulary::kMaxFileBytes, bad_format, kWhere, source,
                ": expected at most ", Vocabulary::kMaxFileBytes, " bytes, got ", text.size());
  uint64_t num_keys = 0;
  const auto on_event = [&](int depth, Json::parse_event_t event, Json& value) {
    MIMO_RT_CHECK(depth <= kMaxDepth, bad_format, kWhere, source, ": expected at most ", kMaxDepth,
                  " levels of nesting");
    if (event != Json::parse_event_t::key) return true;
    MIMO_RT_CHECK(++num_keys <= kMaxKeys, bad_format, kWhere, source, ": expected at most ",
                  kMaxKeys, " keys");
    return is_wanted(depth, value.get_ref<const std::string&>());
  };
  try {
    Json root = Json::parse(text.begin(), text.end(), on_event);
    MIMO_RT_CHECK(root.is_object(), bad_format, kWhere, source, ": expected a JSON object, got ",
                  root.type_name());
    return root;
  } catch (const Json::exception& error) {
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

  void add_model_vocab(const Json& vocab) {
    MIMO_RT_CHECK(vocab.is_object() && !vocab.empty(), bad_format, kWhere, source_,
                  ": model.vocab: expected a non-empty object, got ", vocab.type_name());
    for (const auto& [token, id] : vocab.items()) add(token, id, false, "model.vocab");
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
      add(content.get_ref<const std::string&>(), member(token, "id"),
          special.is_boolean() && special.get<bool>(), "added_tokens");
    }
  }

  Vocabulary take() { return std::move(vocabulary_); }

 private:
  void add(const std::string& token, const Json& id, bool special, const char* list) {
    MIMO_RT_CHECK(id.is_number_unsigned() &&
                      id.get<uint64_t>() <= uint64_t{Vocabulary::kMaxTokenId},
                  bad_format, kWhere, source_, ": ", list, ": id of ", printable(token, 60),
                  ": expected an integer in [0, ", Vocabulary::kMaxTokenId, "], got ",
                  id.is_primitive() ? id.dump(-1, ' ', true, Json::error_handler_t::replace)
                                          .substr(0, 40) : id.type_name());
    const auto idx = id.get<size_t>();
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

Vocabulary Vocabulary::from_json(std::string_view json, std::string_view source_name) {
  const Json root = parse_tokenizer(json, source_name);
  const Json& model = member(root, "model");
  MIMO_RT_CHECK(model.is_object(), bad_format, kWhere, source_name,
                ": model: expected an object, got ", model.type_name());
  const std::string type = text_or(member(model, "type"), "BPE");
  MIMO_RT_CHECK(type == "BPE", unsupported_shape, kWhere, source_name,
                ": model.type: expected BPE, got ", printable(type, 60));
  const std::string decoder = find_foreign_decoder(member(root, "decoder"));
  MIMO_RT_CHECK(decoder.empty(), unsupported_shape, kWhere, source_name,
                ": decoder: expected ByteLevel, got ", printable(decoder, 60),
                ". Decode the token ids with the tokenizer itself.");
  VocabularyBuilder builder(source_name);
  builder.add_model_vocab(member(model, "vocab"));
  builder.add_added_tokens(member(root, "added_tokens"));
  return builder.take();
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

bool Vocabulary::is_special(int32_t token_id) const {
  return token_id >= 0 && static_cast<uint32_t>(token_id) < size() &&
         entries_[static_cast<size_t>(token_id)].special;
}

}  // namespace mimo_rt
