// Whose threads and locks these are: a fork has neither the threads nor whoever holds the locks.
#pragma once

#include "core/checks.h"

#include <sys/types.h>
#include <unistd.h>

#include <cstddef>
#include <new>
#include <thread>
#include <utility>

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
  /// Waits for a thread of that process to end. A fork has no such thread, and the handle may have become that of one
  /// that the fork began: there it is given up untouched, neither joined nor detached.
  void join(std::thread& thread) const {
    if (is_here()) return thread.join();
    alignas(std::thread) std::byte never_destroyed[sizeof(std::thread)];
    new (never_destroyed) std::thread(std::move(thread));
  }

 private:
  const pid_t pid_ = getpid();
};

}  // namespace mimo_rt
