// The text of error messages.
#include "core/checks.h"

#include <charconv>

namespace mimo_rt {

namespace {

template <typename T, typename... Format>
size_t write_digits(char (&digits)[24], T value, Format... format) {
  return static_cast<size_t>(std::to_chars(digits, digits + sizeof digits, value, format...).ptr - digits);
}

}  // namespace

void TextPiece::write(int64_t value) { num_digits_ = write_digits(digits_, value); }
void TextPiece::write(uint64_t value) { num_digits_ = write_digits(digits_, value); }
void TextPiece::write(double value) { num_digits_ = write_digits(digits_, value, std::chars_format::general, 6); }

std::string concat_pieces(std::initializer_list<TextPiece> pieces) {
  std::string text;
  for (const TextPiece& piece : pieces) text += piece.text();
  return text;
}

void fail_with(ErrorCode code, const char* where, std::initializer_list<TextPiece> pieces) {
  throw Error(code, concat("[", where, "] ", concat_pieces(pieces)));
}

}  // namespace mimo_rt
