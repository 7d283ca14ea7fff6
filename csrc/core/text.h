// Text of untrusted origin: checked, and made safe to print in an error message.
#pragma once

#include <string>
#include <string_view>

namespace mimo_rt {

/// `'text'` in ASCII: other bytes as \xNN, at most `max_chars` bytes of `text` are shown.
inline std::string printable(std::string_view text, size_t max_chars = 160) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "'";
  for (const char c : text.substr(0, max_chars)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  if (text.size() > max_chars) out += "...";
  out += '\'';
  return out;
}

/// Strict UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
bool is_valid_utf8(std::string_view text) noexcept;

}  // namespace mimo_rt
