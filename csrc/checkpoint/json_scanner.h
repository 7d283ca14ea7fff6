// A strict reader for the small part of JSON that checkpoints use. It never builds a document and
// never recurses: the caller asks for the token that its format allows next.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mimo_rt {

class JsonScanner {
 public:
  /// `text` must outlive the scanner; `where` and `source` begin every error message.
  /// @throws Error{bad_format} when `text` is not UTF-8
  JsonScanner(std::string_view text, const char* where, std::string_view source);

  /// Skips white space and takes `token` when it is next.
  bool accept(char token);
  /// Skips white space; whether `token` is next.
  bool is_next(char token);
  /// @throws Error{bad_format}
  void expect(char token);
  /// A string literal, unescaped. @throws Error{bad_format}, also for raw control characters and
  /// lone surrogates
  std::string string();
  /// A literal without sign, fraction or exponent, at most `max`. @throws Error{bad_format}
  uint64_t integer(uint64_t max);
  /// Skips one value of any type. @throws Error{bad_format} when it nests deeper than `max_depth`,
  /// or an object of it has a key twice
  void skip_value(int max_depth);
  /// The same; returns the value as it is written. @throws as skip_value
  std::string_view raw_value(int max_depth);
  /// After the document: nothing may follow but `padding` (' ') or, when 0, white space.
  void expect_end(char padding);

  [[noreturn]] void fail_here(std::string_view expected) const;

 private:
  void skip_space();
  void skip_scalar();
  uint32_t hex4();
  void append_escape(std::string& out);

  std::string_view text_;
  size_t pos_ = 0;
  const char* where_;
  std::string_view source_;
};

}  // namespace mimo_rt
