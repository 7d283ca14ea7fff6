#include "checkpoint/json_scanner.h"

#include "core/checks.h"
#include "core/text.h"

#include <algorithm>
#include <set>
#include <vector>

namespace mimo_rt {
namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_scalar_char(char c) {  // of numbers, true, false, null
  return is_digit(c) || (c >= 'a' && c <= 'z') || c == '+' || c == '-' || c == '.' || c == 'E';
}

/// "-"? ("0" | [1-9] digits) ("." digits)? ([eE] [+-]? digits)?
bool is_number(std::string_view word) {
  const auto take = [&word](std::string_view any_of) {
    const bool found = !word.empty() && any_of.find(word[0]) != std::string_view::npos;
    if (found) word.remove_prefix(1);
    return found;
  };
  const auto take_digits = [&word] {
    const size_t count = std::min(word.find_first_not_of("0123456789"), word.size());
    word.remove_prefix(count);
    return count > 0;
  };
  take("-");
  if (!take("0") && !take_digits()) return false;
  if (take(".") && !take_digits()) return false;
  if (take("eE")) {
    take("+-");
    if (!take_digits()) return false;
  }
  return word.empty();
}

void append_utf8(std::string& out, uint32_t code) {
  const auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xc0 | code >> 6);
  } else {
    if (code < 0x10000) {
      put(0xe0 | code >> 12);
    } else {
      put(0xf0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3f));
    }
    put(0x80 | (code >> 6 & 0x3f));
  }
  put(0x80 | (code & 0x3f));
}

}  // namespace

JsonScanner::JsonScanner(std::string_view text, const char* where, std::string_view source)
    : text_(text), where_(where), source_(source) {
  MIMO_RT_CHECK(is_valid_utf8(text), bad_format, where, source,
                ": expected UTF-8 JSON, got bytes that are not UTF-8");
}

void JsonScanner::fail_here(std::string_view expected) const {
  fail(ErrorCode::bad_format, where_, source_, ": JSON byte ", pos_, ": expected ", expected,
       ", got ", pos_ < text_.size() ? printable(text_.substr(pos_, 16)) : "the end");
}

void JsonScanner::skip_space() {
  while (pos_ < text_.size() && is_space(text_[pos_])) ++pos_;
}

bool JsonScanner::is_next(char token) {
  skip_space();
  return pos_ < text_.size() && text_[pos_] == token;
}

bool JsonScanner::accept(char token) {
  if (!is_next(token)) return false;
  ++pos_;
  return true;
}

void JsonScanner::expect(char token) {
  if (!accept(token)) fail_here(printable(std::string_view(&token, 1)));
}

uint32_t JsonScanner::hex4() {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i, ++pos_) {
    const char c = pos_ < text_.size() ? text_[pos_] : '\0';
    const bool lower = c >= 'a' && c <= 'f', upper = c >= 'A' && c <= 'F';
    if (!is_digit(c) && !lower && !upper) fail_here("four hexadecimal digits");
    value = value << 4 |
            static_cast<uint32_t>(is_digit(c) ? c - '0' : lower ? c - 'a' + 10 : c - 'A' + 10);
  }
  return value;
}

// `pos_` is behind the backslash.
void JsonScanner::append_escape(std::string& out) {
  const char kind = pos_ < text_.size() ? text_[pos_] : '\0';
  constexpr std::string_view kKinds = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
  if (const size_t i = kKinds.find(kind); kind != '\0' && i != std::string_view::npos) {
    ++pos_;
    out += kValues[i];
    return;
  }
  if (kind != 'u') fail_here("a JSON escape");
  ++pos_;
  uint32_t code = hex4();
  if (code >= 0xd800 && code < 0xdc00) {
    if (text_.substr(pos_, 2) != "\\u") fail_here("the second half of a surrogate pair");
    pos_ += 2;
    const uint32_t low = hex4();
    if (low < 0xdc00 || low >= 0xe000) fail_here("the second half of a surrogate pair");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  } else if (code >= 0xdc00 && code < 0xe000) {
    fail_here("no lone surrogate");
  }
  append_utf8(out, code);
}

std::string JsonScanner::string() {
  skip_space();
  if (pos_ >= text_.size() || text_[pos_] != '"') fail_here("a string");
  ++pos_;
  std::string out;
  while (true) {
    const size_t begin = pos_;
    while (pos_ < text_.size() && text_[pos_] != '"' && text_[pos_] != '\\' &&
           static_cast<unsigned char>(text_[pos_]) >= 0x20)
      ++pos_;
    out.append(text_, begin, pos_ - begin);
    if (pos_ >= text_.size()) fail_here("the end of a string");
    const char stop = text_[pos_];
    if (stop != '"' && stop != '\\') fail_here("no control character in a string");
    ++pos_;
    if (stop == '"') return out;
    append_escape(out);
  }
}

uint64_t JsonScanner::integer(uint64_t max) {
  skip_space();
  const size_t begin = pos_;
  uint64_t value = 0;
  while (pos_ < text_.size() && is_digit(text_[pos_])) {
    const auto digit = static_cast<uint64_t>(text_[pos_] - '0');
    if (digit > max || value > (max - digit) / 10)
      fail_here(concat("an integer of at most ", max));
    value = value * 10 + digit;
    ++pos_;
  }
  const bool leading_zero = pos_ - begin > 1 && text_[begin] == '0';
  const char next = pos_ < text_.size() ? text_[pos_] : '\0';
  if (pos_ == begin || leading_zero || next == '.' || next == 'e' || next == 'E')
    fail_here("an integer literal without sign, fraction or exponent");
  return value;
}

void JsonScanner::skip_scalar() {
  if (pos_ < text_.size() && text_[pos_] == '"') {
    string();
    return;
  }
  const size_t begin = pos_;
  while (pos_ < text_.size() && is_scalar_char(text_[pos_])) ++pos_;
  const std::string_view word = text_.substr(begin, pos_ - begin);
  if (word == "true" || word == "false" || word == "null" || is_number(word)) return;
  pos_ = begin;
  fail_here("a JSON value");
}

void JsonScanner::skip_value(int max_depth) {
  struct Open {
    char closer;
    std::set<std::string> keys;  // of an object
  };
  std::vector<Open> open;
  do {
    skip_space();
    const char next = pos_ < text_.size() ? text_[pos_] : '\0';
    bool opened = false;
    if (next == '{' || next == '[') {
      ++pos_;
      open.push_back({next == '{' ? '}' : ']', {}});
      if (open.size() > static_cast<size_t>(max_depth)) fail_here("less nesting");
      opened = !accept(open.back().closer);
      if (!opened) open.pop_back();
    } else {
      skip_scalar();
    }
    while (!opened && !open.empty() && !accept(',')) {
      expect(open.back().closer);
      open.pop_back();
    }
    if (!open.empty() && open.back().closer == '}') {
      const auto [key, is_new] = open.back().keys.insert(string());
      if (!is_new) fail_here(concat("each key once, after a second ", printable(*key)));
      expect(':');
    }
  } while (!open.empty());
}

std::string_view JsonScanner::raw_value(int max_depth) {
  skip_space();
  const size_t begin = pos_;
  skip_value(max_depth);
  return text_.substr(begin, pos_ - begin);
}

void JsonScanner::expect_end(char padding) {
  while (pos_ < text_.size() && (padding ? text_[pos_] == padding : is_space(text_[pos_]))) ++pos_;
  if (pos_ < text_.size()) fail_here(padding ? "nothing but spaces" : "the end");
}

}  // namespace mimo_rt
