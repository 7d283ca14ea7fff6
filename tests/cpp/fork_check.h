// What engines and pools say in a fork of their process.
#pragma once

#include "check.h"

#include <mimo_rt/error.h>

#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>

namespace fixture {

/// `body`, in a fork, returns true.
inline void check_in_fork(const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // a hang becomes a signal
    try {
      _exit(body() ? 42 : 1);
    } catch (...) {  // or it would run the tests that follow
      _exit(2);
    }
  }
  CHECK(child > 0);
  int status = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status));
  CHECK_EQ(WEXITSTATUS(status), 42);
}

/// `body`, in a fork, throws Error{unavailable} that speaks of the fork.
inline void check_refused_in_fork(const std::function<void()>& body) {
  check_in_fork([&] {
    try {
      body();
    } catch (const mimo_rt::Error& error) {
      const bool is_clear = std::string(error.what()).find("fork") != std::string::npos;
      return error.code() == mimo_rt::ErrorCode::unavailable && is_clear;
    }
    return false;
  });
}

}  // namespace fixture
