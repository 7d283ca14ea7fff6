// How library code reports a caller's or a file's mistake: one macro, one message shape.
#pragma once

#include <mimo_rt/error.h>

#include <locale>
#include <sstream>
#include <string>

namespace mimo_rt {

/// Joins its arguments with operator<<: `concat("layer ", 3)`. Numbers look the same whatever locale the
/// program has set.
template <typename... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  (out << ... << args);
  return out.str();
}

/// Throws Error{code}; `where` names the public operation ("Checkpoint.open").
template <typename... Args>
[[noreturn]] void fail(ErrorCode code, const char* where, const Args&... args) {
  throw Error(code, concat('[', where, "] ", args...));
}

}  // namespace mimo_rt

// Always on. MIMO_RT_CHECK(n > 0, invalid_argument, "Session.generate", "max_tokens: expected > 0, got ", n)
#define MIMO_RT_CHECK(condition, code, where, ...)                                     \
  do {                                                                                 \
    if (!(condition)) [[unlikely]]                                                     \
      ::mimo_rt::fail(::mimo_rt::ErrorCode::code, where, __VA_ARGS__);                 \
  } while (false)
