// The text of error messages.
#include "core/checks.h"

#include <charconv>

namespace mimo_rt {

void TextPiece::write(int64_t value) {
  num_digits_ = static_cast<size_t>(std::to_chars(digits_, digits_ + sizeof digits_, value).ptr - digits_);
}

void TextPiece::write(uint64_t value) {
  num_digits_ = static_cast<size_t>(std::to_chars(digits_, digits_ + sizeof digits_, value).ptr - digits_);
}

void TextPiece::write(double value) {
  const auto end = std::to_chars(digits_, digits_ + sizeof digits_, value, std::chars_format::general, 6);
  num_digits_ = static_cast<size_t>(end.ptr - digits_);
}

std::string concat_pieces(std::initializer_list<TextPiece> pieces) {
  std::string text;
  for (const TextPiece& piece : pieces) text += piece.text();
  return text;
}

void fail_with(ErrorCode code, const char* where, std::initializer_list<TextPiece> pieces) {
  std::string text = concat("[", where, "] ");
  for (const TextPiece& piece : pieces) text += piece.text();
  throw Error(code, text);
}

}  // namespace mimo_rt
