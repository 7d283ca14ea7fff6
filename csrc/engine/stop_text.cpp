#include "engine/stop_text.h"

#include <algorithm>

namespace mimo_rt {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

/// Bytes of the character that `first` begins; 0 when no character begins with it.
uint32_t utf8_length(uint8_t first) {
  if (first < 0x80) return 1;
  if (first < 0xc2) return 0;  // continuation bytes and overlong forms
  if (first < 0xe0) return 2;
  if (first < 0xf0) return 3;
  return first < 0xf5 ? 4 : 0;
}

}  // namespace

bool Utf8Stream::accepts(uint8_t byte) const {
  if ((byte & 0xc0) != 0x80) return false;
  if (num_pending_ != 1) return true;
  switch (static_cast<uint8_t>(pending_[0])) {  // the second byte excludes overlong forms,
    case 0xe0: return byte >= 0xa0;
    case 0xed: return byte < 0xa0;  // surrogates,
    case 0xf0: return byte >= 0x90;
    case 0xf4: return byte < 0x90;  // and what lies above U+10FFFF
    default: return true;
  }
}

void Utf8Stream::push(std::string_view bytes, std::string& text) {
  for (const char c : bytes) {
    const auto byte = static_cast<uint8_t>(c);
    if (num_pending_ > 0 && !accepts(byte)) {
      text += kReplacement;
      num_pending_ = 0;
    }
    if (num_pending_ == 0) {
      num_wanted_ = utf8_length(byte);
      if (num_wanted_ == 0) {
        text += kReplacement;
        continue;
      }
    }
    pending_[num_pending_++] = c;
    if (num_pending_ < num_wanted_) continue;
    text.append(pending_, num_pending_);
    num_pending_ = 0;
  }
}

void Utf8Stream::finish(std::string& text) {
  if (num_pending_ > 0) text += kReplacement;
  num_pending_ = 0;
}

StopText::StopText(std::vector<std::string> stops, bool include_stop_in_output)
    : include_stop_(include_stop_in_output) {
  for (std::string& stop : stops) {
    Matcher matcher{std::move(stop), {}};
    matcher.border.assign(matcher.pattern.size(), 0);
    for (uint32_t i = 1, length = 0; i < matcher.pattern.size(); ++i) {
      while (length > 0 && matcher.pattern[i] != matcher.pattern[length])
        length = matcher.border[length - 1];
      if (matcher.pattern[i] == matcher.pattern[length]) ++length;
      matcher.border[i] = length;
    }
    matchers_.push_back(std::move(matcher));
  }
}

bool StopText::Matcher::advance(char byte) {
  while (matched > 0 && pattern[matched] != byte) matched = border[matched - 1];
  if (pattern[matched] == byte) ++matched;
  return matched == pattern.size();
}

bool StopText::push(std::string_view bytes, bool may_stop) {
  decoded_.clear();
  utf8_.push(bytes, decoded_);
  if (may_stop) return scan(decoded_);
  text_ += held_;
  text_ += decoded_;
  held_.clear();
  for (Matcher& matcher : matchers_) matcher.matched = 0;
  return true;
}

bool StopText::scan(std::string_view characters) {
  for (const char c : characters) {
    held_ += c;
    size_t longest = 0;  // bytes that may still become a stop string
    for (size_t i = 0; i < matchers_.size(); ++i) {
      Matcher& matcher = matchers_[i];
      const bool complete = matcher.advance(c);
      longest = std::max<size_t>(longest, matcher.matched);
      if (!complete) continue;
      const auto best = static_cast<size_t>(stop_idx_);
      if (stop_idx_ < 0 || matcher.pattern.size() > matchers_[best].pattern.size())
        stop_idx_ = static_cast<int>(i);
    }
    if (stop_idx_ >= 0) {
      const size_t stop_size = matchers_[static_cast<size_t>(stop_idx_)].pattern.size();
      text_.append(held_, 0, held_.size() - (include_stop_ ? 0 : stop_size));
      held_.clear();
      return false;
    }
    if (held_.size() > longest) {
      text_.append(held_, 0, held_.size() - longest);
      held_.erase(0, held_.size() - longest);
    }
  }
  return true;
}

void StopText::finish() {
  if (stop_idx_ >= 0) return;
  text_ += held_;
  held_.clear();
  utf8_.finish(text_);
}

std::string_view StopText::take_released() {
  const std::string_view fresh = std::string_view(text_).substr(num_taken_);
  num_taken_ = text_.size();
  return fresh;
}

}  // namespace mimo_rt
