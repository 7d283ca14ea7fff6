// How library code reports a caller's or a file's mistake: one macro, one message shape.
#pragma once

#include <mimo_rt/error.h>

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

namespace mimo_rt {

/// One argument of `concat`: text, or a number in its text form ("%g" for floating point), the same
/// whatever locale the program has set. One type, so that a message costs a call: as a template for
/// each message's own types, messages were 28 % of the library.
class TextPiece {
 public:
  TextPiece(std::string_view text) : text_(text) {}
  TextPiece(const std::string& text) : text_(text) {}
  TextPiece(const char* text) : text_(text ? text : "(null)") {}
  TextPiece(std::integral auto value) {
    using T = decltype(value);
    if constexpr (std::same_as<T, char>) digits_[num_digits_++] = value;
    else if constexpr (std::signed_integral<T>) write(static_cast<int64_t>(value));
    else write(static_cast<uint64_t>(value));
  }
  TextPiece(std::floating_point auto value) { write(static_cast<double>(value)); }
  template <typename T>
    requires(std::is_enum_v<T> && std::convertible_to<T, int64_t>)  // unscoped: a number with a name
  TextPiece(T value) { write(static_cast<int64_t>(value)); }

  std::string_view text() const { return num_digits_ ? std::string_view(digits_, num_digits_) : text_; }

 private:
  void write(int64_t value);
  void write(uint64_t value);
  void write(double value);

  std::string_view text_;
  char digits_[24];
  size_t num_digits_ = 0;
};

/// Joins pieces; a piece refers to its argument's text, so it lives no longer than the call.
std::string concat_pieces(std::initializer_list<TextPiece> pieces);

/// Joins its arguments: `concat("layer ", 3)`.
template <typename... Args>
std::string concat(const Args&... args) {
  return concat_pieces({TextPiece(args)...});
}

/// Throws Error{code}; `where` names the public operation ("Checkpoint.open").
[[noreturn]] void fail_with(ErrorCode code, const char* where, std::initializer_list<TextPiece> pieces);

template <typename... Args>
[[noreturn]] void fail(ErrorCode code, const char* where, const Args&... args) {
  fail_with(code, where, {TextPiece(args)...});
}

}  // namespace mimo_rt

// Always on. MIMO_RT_CHECK(n > 0, invalid_argument, "Session.generate", "max_tokens: expected > 0, got ", n)
#define MIMO_RT_CHECK(condition, code, where, ...)                                     \
  do {                                                                                 \
    if (!(condition)) [[unlikely]]                                                     \
      ::mimo_rt::fail_with(::mimo_rt::ErrorCode::code, where, {__VA_ARGS__});          \
  } while (false)
