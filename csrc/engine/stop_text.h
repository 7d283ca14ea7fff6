// Turns the bytes of tokens into text that may be shown: whole UTF-8 characters only, and nothing
// that may still become a stop string. The result does not depend on how the bytes were cut into
// tokens.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mimo_rt {

/// An incremental UTF-8 decoder with replacement: as Python's bytes.decode("utf-8", "replace"),
/// every maximal invalid part becomes one U+FFFD.
class Utf8Stream {
 public:
  /// Appends to `text` the characters that `bytes` completes.
  void push(std::string_view bytes, std::string& text);
  /// An incomplete character at the end becomes one U+FFFD.
  void finish(std::string& text);

 private:
  bool accepts(uint8_t byte) const;

  char pending_[4] = {};  // a valid beginning of a character
  uint32_t num_pending_ = 0, num_wanted_ = 0;
};

/// The text of one generation. The stop string whose end comes first wins; of those that end at the
/// same byte, the longest.
class StopText {
 public:
  /// `stops`: non-empty valid UTF-8.
  StopText(std::vector<std::string> stops, bool include_stop_in_output);

  /// Adds the bytes of one token. False when a stop string is complete: then nothing may follow.
  /// `may_stop` false: these bytes are not part of any stop string.
  bool push(std::string_view bytes, bool may_stop = true);
  /// The end without a stop string: releases what was held back.
  void finish();

  /// What was released since the last call; valid until the next call of any other member.
  std::string_view take_released();
  /// Index of the stop string that was found, or -1.
  int stop_idx() const { return stop_idx_; }
  /// All of the text that is released, whatever was taken.
  const std::string& text() const { return text_; }
  /// Moves text() out; the object is of no use afterwards.
  std::string release_text() { return std::move(text_); }

 private:
  /// Knuth-Morris-Pratt: `matched` bytes of `pattern` end at the last byte seen.
  struct Matcher {
    std::string pattern;
    std::vector<uint32_t> border;  ///< [size] longest proper border of each prefix
    uint32_t matched = 0;

    bool advance(char byte);
  };

  bool scan(std::string_view characters);

  std::vector<Matcher> matchers_;
  bool include_stop_;
  Utf8Stream utf8_;
  std::string text_;    // released
  std::string held_;    // may become a stop string: a prefix of one
  std::string decoded_; // scratch
  size_t num_taken_ = 0;
  int stop_idx_ = -1;
};

}  // namespace mimo_rt
