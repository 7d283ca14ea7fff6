// Whose threads and locks these are: a fork has neither the threads nor whoever holds the locks.
#pragma once

#include "core/checks.h"

#include <sys/types.h>
#include <unistd.h>

namespace mimo_rt {

/// The process that made the object that holds this.
class OwnerProcess {
 public:
  bool is_here() const { return getpid() == pid_; }
  /// @throws Error{unavailable} in a fork
  void check(const char* where) const {
    MIMO_RT_CHECK(is_here(), unavailable, where, "it was opened in process ", pid_, ", this is its fork ", getpid(),
                  ": engines do not survive fork. Open it in the child, or use the 'spawn' start method.");
  }

 private:
  const pid_t pid_ = getpid();
};

}  // namespace mimo_rt
